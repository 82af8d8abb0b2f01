"""The same paged decode over a float8 (e4m3) KV cache with a scale a KV head: half the bytes to read.

e4m3 with scales is vLLM's and TensorRT-LLM's fp8 KV cache; a scale a head instead of a tensor costs nothing and keeps
heads of unlike magnitude apart. On CUDA the faster of our split-KV kernel and flashinfer's decode.
"""

from __future__ import annotations

import importlib.util

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
    """The gather, then widening, on a CPU; on CUDA the candidates."""
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_fp8_NPHD"], inputs["v_fp8_NPHD"]
    if not q_BHD.is_cuda:
        pools = {"k_pages_NPHD": k_NPHD, "v_pages_NPHD": v_NPHD}
        return paging.gather_decode(inputs | pools, (inputs["k_scale_H"], inputs["v_scale_H"]))
    return {
        "triton split-kv, e4m3": lambda: build_triton(inputs),
        "flashinfer tensor cores, e4m3": lambda: build_flashinfer(inputs),
    }


def build_triton(inputs):
    """Our split-KV kernel, planned once a step; the scales are applied inside."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("triton is not installed: it comes with torch for CUDA")
    from serveproof.ops import paged_decode, paged_plan

    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_fp8_NPHD"], inputs["v_fp8_NPHD"]
    plan = paged_plan.plan_for(q_BHD, k_NPHD, inputs["lengths_B"])
    scales = inputs["k_scale_H"], inputs["v_scale_H"]

    def run():
        return paged_decode.paged_decode(q_BHD, k_NPHD, v_NPHD, inputs["block_table_BP"], plan, scales)

    run.plan = f"{plan.items.shape[1]} parts of the sequences dealt out once a step, for all its layers"
    return run


def build_flashinfer(inputs):
    """flashinfer's decode takes no scale a head: the keys' go into q before, the values' onto the output after."""
    if importlib.util.find_spec("flashinfer") is None:
        raise NotImplementedError("flashinfer is not installed: pip install flashinfer-python (envs/gpu.txt has it)")
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_fp8_NPHD"], inputs["v_fp8_NPHD"]
    group = q_BHD.shape[1] // k_NPHD.shape[2]
    wrapper = paging.flashinfer_decode(q_BHD, k_NPHD, inputs["block_table_BP"], inputs["lengths_B"], True)

    def run():
        k_scale_H, v_scale_H = (
            inputs[name].to(q_BHD.dtype).repeat_interleave(group)[:, None] for name in ("k_scale_H", "v_scale_H")
        )
        return wrapper.run(q_BHD * k_scale_H, (k_NPHD, v_NPHD)) * v_scale_H

    run.plan = "plan() outside the timed region: a served step plans once for all its layers"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
