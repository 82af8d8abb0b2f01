"""Decode attention over real pages: a block table, ragged lengths, no padding read.

PagedAttention (Kwon et al., arXiv 2309.06180) keeps the KV cache in fixed-size pages, so a sequence reserves what it
uses, rounded up to a page, and attention reads nothing else. On CUDA: flashinfer's paged decode (arXiv 2501.01005),
the faster of its kernels by measurement when the closure is built. On a CPU: each sequence's pages gathered by its
block table (flex_attention over the pool was measured slower: docs/pairs/paged_attention.md).
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

READS = ("q_BHD", "k_pages_NPHD", "v_pages_NPHD", "block_table_BP", "lengths_B")
WORKSPACE_BYTES = 256 * 2**20
SPIN_CYCLES = 1_000_000  # about half a millisecond


def requires(device):
    """None on a CPU; on CUDA flashinfer must be installed."""
    if device == "cuda" and importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed: pip install flashinfer-python (envs/gpu.txt has it)"
    return None


def metrics(inputs):
    """KV-cache bytes reserved and used, and the share reserved for nothing: here only the ends of last pages."""
    pool = inputs["k_pages_NPHD"]
    per_token = 2 * pool.shape[2] * pool.shape[3] * pool.element_size()
    reserved, used = pool.shape[0] * pool.shape[1] * per_token, int(inputs["lengths_B"].sum()) * per_token
    return {
        "kv_bytes_reserved": (reserved, "bytes", "pages x page size"),
        "kv_bytes_used": (used, "bytes", "valid tokens"),
        "kv_fragmentation": (100 * (1 - used / reserved), "%", "reserved but unused"),
    }


def build(inputs):
    """The closure for the inputs' device."""
    return build_flashinfer(inputs) if inputs["q_BHD"].is_cuda else build_gather(inputs)


def build_gather(inputs):
    """Gather every sequence's pages by the block table into one buffer, then SDPA per sequence, no mask.

    The buffers are made once: fresh ones would fault in their memory on every call, or not, as the process has it.
    The query heads that share a KV head are packed as that head's query rows, so keys are not repeated for GQA.
    """
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    page, heads, D = k_NPHD.shape[1:]
    lengths = inputs["lengths_B"].tolist()
    pages = [-(-n // page) for n in lengths]
    table = torch.cat([inputs["block_table_BP"][b, :count].long() for b, count in enumerate(pages)])
    starts = [page * sum(pages[:b]) for b in range(len(pages))]
    k_gathered = torch.empty(len(table), *k_NPHD.shape[1:], dtype=k_NPHD.dtype)
    v_gathered = torch.empty_like(k_gathered)

    def run():
        out_BHD = torch.empty_like(q_BHD)
        k_SHD = torch.index_select(k_NPHD, 0, table, out=k_gathered).view(-1, heads, D)
        v_SHD = torch.index_select(v_NPHD, 0, table, out=v_gathered).view(-1, heads, D)
        for b, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            k_1HSD = k_SHD[start : start + n].transpose(0, 1)[None]
            v_1HSD = v_SHD[start : start + n].transpose(0, 1)[None]
            out_1HGD = F.scaled_dot_product_attention(q_BHD[b].view(1, heads, -1, D), k_1HSD, v_1HSD)
            out_BHD[b] = out_1HGD.view(-1, D)
        return out_BHD

    run.backend = "gather by block table"
    run.plan = "page indices and gather buffers made once a step, shared by all layers"
    return run


def milliseconds(run, calls=10):
    """Median device time of `calls` calls after three for warming up.

    A spin before each keeps the GPU busy until the host has enqueued the call: else the host's own time is compared.
    """
    times = []
    for call in range(calls + 3):
        torch.cuda._sleep(SPIN_CYCLES)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if call >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def build_flashinfer(inputs):
    """flashinfer's BatchDecodeWithPagedKVCacheWrapper, planned once: a served step plans once and runs every layer."""
    import flashinfer

    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    page = k_NPHD.shape[1]
    lengths_B = inputs["lengths_B"].int()
    pages_B = (lengths_B + page - 1) // page
    indptr = F.pad(pages_B.cumsum(0), (1, 0)).int()
    table_BP = inputs["block_table_BP"]
    used_BP = torch.arange(table_BP.shape[1], device=table_BP.device)[None] < pages_B[:, None]
    indices = table_BP[used_BP].int()
    last_B = (lengths_B - 1) % page + 1
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q_BHD.device)

    def on(use_tensor_cores):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=use_tensor_cores)
        wrapper.plan(
            indptr, indices, last_B, q_BHD.shape[1], k_NPHD.shape[2], q_BHD.shape[2], page,
            q_data_type=q_BHD.dtype, kv_data_type=k_NPHD.dtype,
        )  # fmt: skip
        return lambda: wrapper.run(q_BHD, (k_NPHD, v_NPHD))

    timed = {}
    for name, use_tensor_cores in (("flashinfer tensor cores", True), ("flashinfer cuda cores", False)):
        timed[name] = milliseconds(on(use_tensor_cores))
    fastest = min(timed, key=timed.get)
    chosen = on(fastest == "flashinfer tensor cores")

    def run():
        return chosen()

    run.backend = fastest
    run.plan = "plan() outside the timed region: a served step plans once for all layers; fastest of " + ", ".join(
        f"{name} {ms:.3f} ms" for name, ms in timed.items()
    )
    return run
