"""Paged decode attention over a bfloat16 KV cache: the cache in the model's own dtype, as engines start out with.

On CUDA flashinfer's paged decode on tensor cores, the fastest for bfloat16 at equal lengths (docs/pairs), or where it
isn't installed serveproof/ops/paged_decode.py; on a CPU the gather by the block table.

axes: batch, q_heads, kv_heads, head_dim, page_size, max_len, median_len, dtype; optional lengths.
"""

from __future__ import annotations

import importlib.util

import torch

from serveproof.ops import paging

READS = ("q_BHD", "k_pages_NPHD", "v_pages_NPHD", "block_table_BP", "lengths_B")
E4M3_MAX = 448.0


def quantized(pool_NPHD):
    """(float8_e4m3fn pool, float32 scale a KV head): the largest magnitude of a head becomes e4m3's largest."""
    scale_H = pool_NPHD.float().abs().amax(dim=(0, 1, 3)).clamp(min=1e-12) / E4M3_MAX
    return (pool_NPHD.float() / scale_H[:, None]).to(torch.float8_e4m3fn), scale_H


def make_inputs(axes, device, seed):
    """The pages twice: in the axes' dtype, and as float8_e4m3fn with a scale a KV head, as a server has written them.

    Quantising a new token is not part of the step that is timed; the contiguous copies are for the reference alone.
    """
    inputs = paging.paged_inputs(axes, device, seed)
    for name in ("k", "v"):
        pool, scale = quantized(inputs[f"{name}_pages_NPHD"])
        inputs[f"{name}_fp8_NPHD"], inputs[f"{name}_scale_H"] = pool, scale
    return inputs


def reference(inputs):
    """Attention over the unquantised cache: the error of float8 is part of what is verified."""
    lengths = inputs["lengths_B"].tolist()
    return paging.attend_each(inputs["q_BHD"], inputs["k_cache_BSHD"], inputs["v_cache_BSHD"], lengths)


def work(axes):
    """The float8 cache is the fewest bytes that hold the problem: one byte a number of k and v, q and out besides."""
    tokens = int(paging.draw_lengths(axes).sum())
    itemsize = getattr(torch, axes["dtype"]).itemsize
    qo_bytes = 2 * axes["batch"] * axes["q_heads"] * axes["head_dim"] * itemsize
    return {
        "flops": 4 * tokens * axes["q_heads"] * axes["head_dim"],
        "bytes": 2 * tokens * axes["kv_heads"] * axes["head_dim"] + qo_bytes,
        "dtype": axes["dtype"],
        "items": axes["batch"],
        "item": "token",
    }


def metrics(inputs):
    """Bytes of the cache that hold tokens."""
    pool = inputs["k_pages_NPHD"]
    per_token = 2 * pool.shape[2] * pool.shape[3] * pool.element_size()
    return {"kv_bytes_used": (int(inputs["lengths_B"].sum()) * per_token, "bytes", "valid tokens")}


def build(inputs):
    """flashinfer or the split-KV kernel on CUDA, planned once a step; the gather on a CPU."""
    if not inputs["q_BHD"].is_cuda:
        return paging.gather_decode(inputs)
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    if importlib.util.find_spec("flashinfer") is not None:
        wrapper = paging.flashinfer_decode(q_BHD, k_NPHD, inputs["block_table_BP"], inputs["lengths_B"], True)

        def run_flashinfer():
            return wrapper.run(q_BHD, (k_NPHD, v_NPHD))

        run_flashinfer.backend = "flashinfer tensor cores"
        return run_flashinfer
    from serveproof.ops import paged_decode, paged_plan

    plan = paged_plan.plan_for(q_BHD, k_NPHD, inputs["lengths_B"])

    def run():
        return paged_decode.paged_decode(q_BHD, k_NPHD, v_NPHD, inputs["block_table_BP"], plan)

    run.backend = "triton split-kv"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
