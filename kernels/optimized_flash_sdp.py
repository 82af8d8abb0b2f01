"""Attention that never writes its scores to memory: the fastest flash implementation for this chip and shape.

FlashAttention (Dao et al., arXiv 2205.14135; version 2, arXiv 2307.08691; version 3, arXiv 2407.08608) computes the
softmax in tiles that stay on the chip. PyTorch's scaled_dot_product_attention ships several implementations (cuDNN's
among them), flashinfer (arXiv 2501.01005) has one after version 3; which is fastest depends on chip, shape and dtype.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

READS = ("q_BSHD", "k_BSHD", "v_BSHD", "x_BSE", "w_EF", "heads", "causal")
NO_HOST_SYNC = True
WORKSPACE_BYTES = 256 * 2**20
FA3_LEAST_SEQ = 1024
CUDA_BACKENDS = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def requires(device):
    """None: scaled_dot_product_attention is part of torch on every device."""
    return None


def project(inputs):
    """Views q, k, v (B, H, S, D) of what is given, or of x's product with w."""
    if inputs["x_BSE"] is None:
        return tuple(inputs[name].transpose(1, 2) for name in ("q_BSHD", "k_BSHD", "v_BSHD"))
    B, S, E = inputs["x_BSE"].shape
    qkv = (inputs["x_BSE"] @ inputs["w_EF"]).view(B, S, 3, inputs["heads"], E // inputs["heads"])
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def build(inputs):
    """Candidates on CUDA; on a CPU torch has one flash implementation."""
    sample = inputs["x_BSE"] if inputs["x_BSE"] is not None else inputs["q_BSHD"]
    if not sample.is_cuda:
        run = build_sdpa(inputs, SDPBackend.FLASH_ATTENTION)
        run.backend = "sdpa flash (cpu)"
        return run
    candidates = {name: (lambda b=backend: build_sdpa(inputs, b)) for name, backend in CUDA_BACKENDS.items()}
    return candidates | {"flashinfer fa3": lambda: build_fa3(inputs)}


def build_sdpa(inputs, backend):
    """scaled_dot_product_attention held to one back end."""

    def run():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*project(inputs), is_causal=inputs["causal"])

    return run


def build_fa3(inputs):
    """flashinfer's ragged prefill with its version-3 kernels, planned once: every sequence has the same length."""
    if importlib.util.find_spec("flashinfer") is None:
        raise NotImplementedError("flashinfer is not installed: pip install flashinfer-python (envs/gpu.txt has it)")
    if inputs["x_BSE"] is not None or inputs["q_BSHD"].shape[1] < FA3_LEAST_SEQ:
        raise NotImplementedError(f"tried from {FA3_LEAST_SEQ} tokens up: it takes more than a minute to compile")
    import flashinfer

    q_BSHD, k_BSHD, v_BSHD = inputs["q_BSHD"], inputs["k_BSHD"], inputs["v_BSHD"]
    B, S, H, D = q_BSHD.shape
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q_BSHD.device)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="fa3")
    indptr = torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device=q_BSHD.device)
    wrapper.plan(indptr, indptr, H, H, D, causal=inputs["causal"], q_data_type=q_BSHD.dtype)

    def run():
        out_NHD = wrapper.run(q_BSHD.view(B * S, H, D), k_BSHD.view(B * S, H, D), v_BSHD.view(B * S, H, D))
        return out_NHD.view(B, S, H, D).transpose(1, 2)

    run.plan = "plan() outside the timed region: a served step plans once for all its layers"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
