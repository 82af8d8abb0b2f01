"""The same paged decode over a float8 (e4m3) KV cache with a scale a KV head: half the bytes to read.

e4m3 with scales is vLLM's and TensorRT-LLM's fp8 KV cache; a scale a head instead of a tensor costs nothing and keeps
heads of unlike magnitude apart. flashinfer's decode takes one scale a tensor only and so is no candidate.
"""

from __future__ import annotations

from serveproof.ops import paging

READS = ("q_BHD", "k_fp8_NPHD", "v_fp8_NPHD", "k_scale_H", "v_scale_H", "block_table_BP", "lengths_B")
NO_HOST_SYNC = True


def requires(device):
    """None on a CPU; on CUDA the chip must have e4m3."""
    if device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < (8, 9):
            return f"compute capability {major}.{minor} has no e4m3: it needs 8.9 or more"
    return None


def metrics(inputs):
    """Bytes of the cache that hold tokens, the scales among them."""
    pool = inputs["k_fp8_NPHD"]
    per_token = 2 * pool.shape[2] * pool.shape[3]
    used = int(inputs["lengths_B"].sum()) * per_token + 2 * inputs["k_scale_H"].nbytes
    return {"kv_bytes_used": (used, "bytes", "valid tokens and scales")}


def build(inputs):
    """The split-KV kernel on CUDA, planned once a step; the gather, then widening, on a CPU."""
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_fp8_NPHD"], inputs["v_fp8_NPHD"]
    scales = inputs["k_scale_H"], inputs["v_scale_H"]
    if not q_BHD.is_cuda:
        return paging.gather_decode(inputs | {"k_pages_NPHD": k_NPHD, "v_pages_NPHD": v_NPHD}, scales)
    from serveproof.ops import paged_decode

    plan = paged_decode.plan_for(q_BHD, k_NPHD, inputs["lengths_B"])

    def run():
        return paged_decode.paged_decode(
            q_BHD, k_NPHD, v_NPHD, inputs["block_table_BP"], inputs["lengths_B"], plan, scales
        )

    run.backend = "triton split-kv, e4m3"
    return run
