"""Decode attention over one contiguous KV cache, padded to the longest sequence, with a mask.

What an engine without pages does: every sequence reserves the longest one's length. Lengths are long-tailed, as
production traffic's are (lognormal; BurstGPT, arXiv 2401.17644, and the Azure traces show such tails), so most of the
cache is padding that attention reads anyway.

axes: batch, q_heads, kv_heads, head_dim, page_size, max_len, median_len, dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

READS = ("q_BHD", "k_cache_BSHD", "v_cache_BSHD", "lengths_B")
SIGMA = 0.9  # spread of log-lengths


def draw_lengths(axes):
    """Long-tailed lengths in [1, max_len], the same for every seed; one sequence always has max_len."""
    generator = torch.Generator().manual_seed(1234)
    logs = torch.randn(axes["batch"], generator=generator) * SIGMA
    lengths_B = (axes["median_len"] * logs.exp()).round().clamp(1, axes["max_len"]).long()
    lengths_B[0] = axes["max_len"]
    return lengths_B


def block_table(lengths_B, page_size):
    """(block_table (B, pages of the longest), number of pages): pages dealt out at random, unused entries 0."""
    pages_B = (lengths_B + page_size - 1) // page_size
    total = int(pages_B.sum())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(4321))
    table_BP = torch.zeros(len(lengths_B), int(pages_B.max()), dtype=torch.int32)
    start = 0
    for b, count in enumerate(pages_B.tolist()):
        table_BP[b, :count] = order[start : start + count]
        start += count
    return table_BP, total


def make_inputs(axes, device, seed):
    """The same keys and values twice: padded (B, S, KVH, D), and in pages (pages, page, KVH, D) behind a block table.

    Padding is zero; so is the unused end of a last page. q is (B, QH, D). Each side reads its own layout only.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    lengths_B = draw_lengths(axes)
    table_BP, pages = block_table(lengths_B, axes["page_size"])
    B, S, page = axes["batch"], axes["max_len"], axes["page_size"]
    heads, D = axes["kv_heads"], axes["head_dim"]
    valid_BS = (torch.arange(S)[None] < lengths_B[:, None]).to(device)
    inputs = {
        "q_BHD": torch.randn(B, axes["q_heads"], D, generator=generator, device=device, dtype=dtype),
        "block_table_BP": table_BP.to(device),
        "lengths_B": lengths_B.to(device),
    }
    for name in ("k", "v"):
        cache_BSHD = torch.randn(B, S, heads, D, generator=generator, device=device, dtype=dtype)
        cache_BSHD.masked_fill_(~valid_BS[:, :, None, None], 0)
        pool_NPHD = torch.zeros(pages, page, heads, D, device=device, dtype=dtype)
        for b, length in enumerate(lengths_B.tolist()):
            count = -(-length // page)
            padded = F.pad(cache_BSHD[b, :length], (0, 0, 0, 0, 0, count * page - length))
            pool_NPHD[inputs["block_table_BP"][b, :count].long()] = padded.view(count, page, heads, D)
        inputs[f"{name}_cache_BSHD"], inputs[f"{name}_pages_NPHD"] = cache_BSHD, pool_NPHD
    return inputs


def reference(inputs):
    """Softmax attention sequence by sequence over the valid tokens alone, float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["q_BHD"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    q_BHD = inputs["q_BHD"].to(wide)
    group = q_BHD.shape[1] // inputs["k_cache_BSHD"].shape[2]
    out_BHD = torch.empty_like(q_BHD)
    for b, length in enumerate(inputs["lengths_B"].tolist()):
        k_HSD = inputs["k_cache_BSHD"][b, :length].to(wide).transpose(0, 1).repeat_interleave(group, 0)
        v_HSD = inputs["v_cache_BSHD"][b, :length].to(wide).transpose(0, 1).repeat_interleave(group, 0)
        scores_HS = torch.einsum("hd,hsd->hs", q_BHD[b], k_HSD) * q_BHD.shape[-1] ** -0.5
        out_BHD[b] = torch.einsum("hs,hsd->hd", scores_HS.softmax(-1), v_HSD)
    return out_BHD


def work(axes):
    """Valid tokens only: 4 QH D FLOPs a token, and its key and value read once; q read and out written."""
    tokens = int(draw_lengths(axes).sum())
    itemsize = getattr(torch, axes["dtype"]).itemsize
    return {
        "flops": 4 * tokens * axes["q_heads"] * axes["head_dim"],
        "bytes": (2 * tokens * axes["kv_heads"] + 2 * axes["batch"] * axes["q_heads"]) * axes["head_dim"] * itemsize,
        "dtype": axes["dtype"],
        "items": axes["batch"],
        "item": "token",
    }


def metrics(inputs):
    """KV-cache bytes reserved and used, and the share reserved for nothing."""
    cache = inputs["k_cache_BSHD"]
    per_token = 2 * cache.shape[2] * cache.shape[3] * cache.element_size()
    reserved, used = cache.shape[0] * cache.shape[1] * per_token, int(inputs["lengths_B"].sum()) * per_token
    return {
        "kv_bytes_reserved": (reserved, "bytes", "batch x longest sequence"),
        "kv_bytes_used": (used, "bytes", "valid tokens"),
        "kv_fragmentation": (100 * (1 - used / reserved), "%", "reserved but unused"),
    }


def build(inputs):
    """SDPA over the padded cache; the boolean mask is made once a step, as all layers share it."""
    q_BHD, k_BSHD, v_BSHD = inputs["q_BHD"], inputs["k_cache_BSHD"], inputs["v_cache_BSHD"]
    positions_S = torch.arange(k_BSHD.shape[1], device=q_BHD.device)
    mask_B11S = (positions_S[None] < inputs["lengths_B"][:, None])[:, None, None, :]

    def run():
        out_BH1D = F.scaled_dot_product_attention(
            q_BHD[:, :, None],
            k_BSHD.transpose(1, 2),
            v_BSHD.transpose(1, 2),
            attn_mask=mask_B11S,
            enable_gqa=True,
        )
        return out_BH1D[:, :, 0]

    run.backend = "sdpa over a padded cache"
    return run
