"""Attention that never writes its scores to memory: F.scaled_dot_product_attention on its fastest back end here.

FlashAttention (Dao et al., arXiv 2205.14135; version 2, arXiv 2307.08691) computes the softmax in tiles that stay on
the chip. PyTorch ships several implementations; which is fastest depends on chip, shape and dtype, so each one that
takes the shape is timed once when the closure is built, and the fastest serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

READS = ("q_BHSD", "k_BHSD", "v_BHSD", "x_BSE", "w_EF", "heads", "causal")
SPIN_CYCLES = 1_000_000  # about half a millisecond
CUDA_BACKENDS = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def requires(device):
    """None: scaled_dot_product_attention is part of torch on every device."""
    return None


def project(inputs):
    """q, k, v (B, H, S, D) as given, or from x by one matrix product."""
    if inputs["x_BSE"] is None:
        return inputs["q_BHSD"], inputs["k_BHSD"], inputs["v_BHSD"]
    B, S, E = inputs["x_BSE"].shape
    qkv = (inputs["x_BSE"] @ inputs["w_EF"]).view(B, S, 3, inputs["heads"], E // inputs["heads"])
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


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


def build(inputs):
    """The closure of the fastest back end that takes these inputs; on a CPU torch has one flash implementation."""
    causal = inputs["causal"]
    sample = inputs["x_BSE"] if inputs["x_BSE"] is not None else inputs["q_BHSD"]

    def attention():
        return F.scaled_dot_product_attention(*project(inputs), is_causal=causal)

    if not sample.is_cuda:

        def run_cpu():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return attention()

        run_cpu.backend = "sdpa flash (cpu)"
        return run_cpu

    def on(backend):
        def run():
            with sdpa_kernel(backend):
                return attention()

        return run

    timed, refused = {}, []
    for name, backend in CUDA_BACKENDS.items():
        try:
            timed[name] = milliseconds(on(backend))
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # 'No available kernel': this back end doesn't take the shape or dtype
            refused.append(f"{name}: {str(error).splitlines()[0]}")
    if not timed:
        raise NotImplementedError("; ".join(refused))
    fastest = min(timed, key=timed.get)
    run = on(CUDA_BACKENDS[fastest])
    run.backend = fastest
    run.plan = "fastest of " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in timed.items())
    return run
