"""Decode attention over real pages: a block table, ragged lengths, no padding read.

PagedAttention (Kwon et al., arXiv 2309.06180) keeps the KV cache in fixed-size pages, so a sequence reserves what it
uses, rounded up to a page, and attention reads nothing else. On CUDA the fastest of flashinfer's paged decode (arXiv
2501.01005) and a split-KV kernel of our own in Triton (serveproof/ops/paged_decode.py). On a CPU: each sequence's pages
gathered by its block table (flex_attention over the pool was measured slower: docs/pairs/paged_attention.md).
"""

from __future__ import annotations

import importlib.util

from serveproof.ops import paging

READS = ("q_BHD", "k_pages_NPHD", "v_pages_NPHD", "block_table_BP", "lengths_B")
NO_HOST_SYNC = True


def requires(device):
    """None: every device has a way, and each back end says for itself what it lacks."""
    return None


def metrics(inputs):
    """KV-cache bytes reserved and used, and the share reserved for nothing: here only the ends of last pages."""
    pool = inputs["k_pages_NPHD"]
    per_token = 2 * pool.shape[2] * pool.shape[3] * pool.element_size()
    used = int(inputs["lengths_B"].sum())
    return paging.kv_metrics(pool.shape[0] * pool.shape[1], used, per_token, "pages x page size")


def build(inputs):
    """The gather on a CPU; on CUDA the candidates."""
    if not inputs["q_BHD"].is_cuda:
        return paging.gather_decode(inputs)
    return {
        "triton split-kv": lambda: build_triton(inputs),
        "flashinfer tensor cores": lambda: build_flashinfer(inputs, use_tensor_cores=True),
        "flashinfer cuda cores": lambda: build_flashinfer(inputs, use_tensor_cores=False),
    }


def build_triton(inputs):
    """Our split-KV kernel, planned once: a served step plans once and runs every layer."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("triton is not installed: it comes with torch for CUDA")
    from serveproof.ops import paged_decode, paged_plan

    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    plan = paged_plan.plan_for(q_BHD, k_NPHD, inputs["lengths_B"])

    def run():
        return paged_decode.paged_decode(q_BHD, k_NPHD, v_NPHD, inputs["block_table_BP"], plan)

    run.plan = f"{plan.items.shape[1]} parts of the sequences dealt out once a step, for all its layers"
    return run


def build_flashinfer(inputs, use_tensor_cores):
    """flashinfer's BatchDecodeWithPagedKVCacheWrapper, planned once: a served step plans once and runs every layer."""
    if importlib.util.find_spec("flashinfer") is None:
        raise NotImplementedError("flashinfer is not installed: pip install flashinfer-python (envs/gpu.txt has it)")
    q_BHD, k_NPHD, v_NPHD = inputs["q_BHD"], inputs["k_pages_NPHD"], inputs["v_pages_NPHD"]
    wrapper = paging.flashinfer_decode(q_BHD, k_NPHD, inputs["block_table_BP"], inputs["lengths_B"], use_tensor_cores)

    def run():
        return wrapper.run(q_BHD, (k_NPHD, v_NPHD))

    run.plan = "plan() outside the timed region: a served step plans once for all its layers"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
