"""All page arithmetic: lengths, block tables, what flashinfer calls indptr and indices, filling pages.

A KV cache in pages is a pool (pages, page size, KV heads, D) behind a block table (B, most pages of a sequence) of
page numbers; entries past a sequence's pages are 0 and never used. PagedAttention: Kwon et al., arXiv 2309.06180.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

FLASHINFER_WORKSPACE_BYTES = 256 * 2**20
SIGMA = 0.9  # spread of log-lengths


def draw_lengths(axes: dict[str, Any]) -> torch.Tensor:
    """(B,) int64 lengths in [1, max_len], the same for every seed.

    long_tailed (the default of axis `lengths`): lognormal around median_len, one sequence has max_len; BurstGPT
    (arXiv 2401.17644) and the Azure traces show such tails. uniform: every sequence has max_len.
    """
    shape = axes.get("lengths", "long_tailed")
    if shape == "uniform":
        return torch.full((axes["batch"],), axes["max_len"], dtype=torch.int64)
    if shape != "long_tailed":
        raise ValueError(f"axis lengths is {shape!r}; it can be 'long_tailed' or 'uniform'")
    generator = torch.Generator().manual_seed(1234)
    logs = torch.randn(axes["batch"], generator=generator) * SIGMA
    lengths_B = (axes["median_len"] * logs.exp()).round().clamp(1, axes["max_len"]).long()
    lengths_B[0] = axes["max_len"]
    return lengths_B


def pages_of(lengths_B: torch.Tensor, page_size: int) -> torch.Tensor:
    """(B,) how many pages each sequence needs."""
    return (lengths_B + page_size - 1) // page_size


def block_table(lengths_B: torch.Tensor, page_size: int) -> tuple[torch.Tensor, int]:
    """(block_table (B, pages of the longest) int32, number of pages): pages dealt out at random, as a server's are."""
    pages_B = pages_of(lengths_B, page_size)
    total = int(pages_B.sum())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(4321))
    table_BP = torch.zeros(len(lengths_B), int(pages_B.max()), dtype=torch.int32)
    start = 0
    for b, count in enumerate(pages_B.tolist()):
        table_BP[b, :count] = order[start : start + count]
        start += count
    return table_BP, total


def fill_pages(
    cache_BSHD: torch.Tensor, lengths_B: torch.Tensor, table_BP: torch.Tensor, pages: int, page_size: int
) -> torch.Tensor:
    """A contiguous cache in a pool (pages, page, H, D); the ends of last pages are its padding, zero past its end."""
    B, S, H, D = cache_BSHD.shape
    width = table_BP.shape[1] * page_size
    padded_BPpHD = F.pad(cache_BSHD, (0, 0, 0, 0, 0, width - S)).view(B, -1, page_size, H, D)
    used_BP = torch.arange(table_BP.shape[1])[None] < pages_of(lengths_B.cpu(), page_size)[:, None]
    used_BP = used_BP.to(cache_BSHD.device)
    pool_NPHD = torch.zeros(pages, page_size, H, D, device=cache_BSHD.device, dtype=cache_BSHD.dtype)
    pool_NPHD[table_BP.to(cache_BSHD.device)[used_BP].long()] = padded_BPpHD[used_BP]
    return pool_NPHD


def paged_inputs(axes: dict[str, Any], device: str, seed: int) -> dict[str, Any]:
    """The same keys and values twice: padded (B, S, KVH, D), and in pages (pages, page, KVH, D) behind a block table.

    Padding is zero; so is the unused end of a last page. q is (B, QH, D); lengths (B,) int64.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    lengths_B = draw_lengths(axes)
    table_BP, pages = block_table(lengths_B, axes["page_size"])
    B, S, heads, D = axes["batch"], int(lengths_B.max()), axes["kv_heads"], axes["head_dim"]
    valid_BS = (torch.arange(S)[None] < lengths_B[:, None]).to(device)
    inputs: dict[str, Any] = {
        "q_BHD": torch.randn(B, axes["q_heads"], D, generator=generator, device=device, dtype=dtype),
        "block_table_BP": table_BP.to(device),
        "lengths_B": lengths_B.to(device),
    }
    for name in ("k", "v"):
        cache_BSHD = torch.randn(B, S, heads, D, generator=generator, device=device, dtype=dtype)
        cache_BSHD.masked_fill_(~valid_BS[:, :, None, None], 0)
        inputs[f"{name}_cache_BSHD"] = cache_BSHD
        inputs[f"{name}_pages_NPHD"] = fill_pages(cache_BSHD, lengths_B, table_BP, pages, axes["page_size"])
    return inputs


def attend_each(q_BHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The reference: softmax attention a sequence, over its valid tokens; float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if q_BHD.is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    q_BHD = q_BHD.to(wide)
    group = q_BHD.shape[1] // k_BSHD.shape[2]
    out_BHD = torch.zeros_like(q_BHD)
    for b, length in enumerate(lengths):
        if not length:
            continue
        k_HSD = k_BSHD[b, :length].to(wide).transpose(0, 1).repeat_interleave(group, 0)
        v_HSD = v_BSHD[b, :length].to(wide).transpose(0, 1).repeat_interleave(group, 0)
        scores_HS = torch.einsum("hd,hsd->hs", q_BHD[b], k_HSD) * q_BHD.shape[-1] ** -0.5
        out_BHD[b] = torch.einsum("hs,hsd->hd", scores_HS.softmax(-1), v_HSD)
    return out_BHD


def flashinfer_plan(
    table_BP: torch.Tensor, lengths_B: torch.Tensor, page_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(indptr (B + 1), indices (pages in use), tokens in each last page (B)), int32, as flashinfer's plan() takes."""
    pages_B = pages_of(lengths_B, page_size)
    indptr = F.pad(pages_B.cumsum(0), (1, 0)).int()
    used_BP = torch.arange(table_BP.shape[1], device=table_BP.device)[None] < pages_B[:, None]
    return indptr, table_BP[used_BP].int(), ((lengths_B - 1) % page_size + 1).int()


def flashinfer_decode(
    q_BHD: torch.Tensor, k_NPHD: torch.Tensor, table_BP: torch.Tensor, lengths_B: torch.Tensor, use_tensor_cores: bool
) -> Any:
    """flashinfer's BatchDecodeWithPagedKVCacheWrapper, planned: call its run(q, (k, v)). flashinfer must be there."""
    import flashinfer

    page = k_NPHD.shape[1]
    indptr, indices, last_B = flashinfer_plan(table_BP, lengths_B, page)
    workspace = torch.empty(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=q_BHD.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=use_tensor_cores)
    wrapper.plan(
        indptr, indices, last_B, q_BHD.shape[1], k_NPHD.shape[2], q_BHD.shape[2], page,
        q_data_type=q_BHD.dtype, kv_data_type=k_NPHD.dtype,
    )  # fmt: skip
    return wrapper


def kv_metrics(reserved_tokens: int, used_tokens: int, bytes_per_token: int, how: str) -> dict[str, Any]:
    """KV-cache bytes reserved and used, and the share reserved for nothing, as a pair's metrics."""
    reserved, used = reserved_tokens * bytes_per_token, used_tokens * bytes_per_token
    return {
        "kv_bytes_reserved": (reserved, "bytes", how),
        "kv_bytes_used": (used, "bytes", "valid tokens"),
        "kv_fragmentation": (100 * (1 - used / reserved), "%", "reserved but unused"),
    }


def gather_decode(inputs: dict[str, Any], scales: tuple[torch.Tensor, torch.Tensor] | None = None) -> Any:
    """A CPU's paged decode, as a closure: gather all pages by the block table once, then SDPA over each sequence.

    scales: (KVH,) of k and v for a float8 pool, which is widened to q's dtype after the gather. The buffers are made
    once: fresh ones would fault in their memory on every call, or not, as the process has it. The query heads that
    share a KV head are packed as that head's query rows, so keys are not repeated for GQA.
    """
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    page, heads, D = k_NPHD.shape[1:]
    lengths = inputs["lengths_B"].tolist()
    pages = [-(-n // page) for n in lengths]
    table = torch.cat([inputs["block_table_BP"][b, :count].long() for b, count in enumerate(pages)])
    starts = [page * sum(pages[:b]) for b in range(len(pages))]
    gathered = [torch.empty(len(table), *k_NPHD.shape[1:], dtype=k_NPHD.dtype) for _ in "kv"]

    def pooled(which: int, pool_NPHD: torch.Tensor) -> torch.Tensor:
        if scales is None:
            return torch.index_select(pool_NPHD, 0, table, out=gathered[which]).view(-1, heads, D)
        raw = torch.index_select(pool_NPHD.view(torch.uint8), 0, table, out=gathered[which].view(torch.uint8))
        return (raw.view(pool_NPHD.dtype).to(q_BHD.dtype) * scales[which].to(q_BHD.dtype)[:, None]).view(-1, heads, D)

    def run() -> torch.Tensor:
        out_BHD = torch.zeros_like(q_BHD)
        k_SHD, v_SHD = pooled(0, k_NPHD), pooled(1, v_NPHD)
        for b, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            if not n:
                continue
            k_1HSD = k_SHD[start : start + n].transpose(0, 1)[None]
            v_1HSD = v_SHD[start : start + n].transpose(0, 1)[None]
            out_1HGD = F.scaled_dot_product_attention(q_BHD[b].view(1, heads, -1, D), k_1HSD, v_1HSD)
            out_BHD[b] = out_1HGD.view(-1, D)
        return out_BHD

    run.backend = "gather by block table"  # type: ignore[attr-defined]
    run.plan = "page indices and gather buffers made once a step, shared by all layers"  # type: ignore[attr-defined]
    return run
