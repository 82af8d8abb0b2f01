"""MLP blocks in bfloat16: hidden to ffn, GELU, back, a few of them one after another.

The shape of the public B200 record of this pair (docs/b200_public_records.md). Weights come from one fixed seed: a
server quantises them once.

axes: m, hidden, ffn, layers, library, precision (the last two name what the record ran).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

READS = ("x_MH", "up_LFH", "down_LHF")
WEIGHT_SEED = 7


def make_inputs(axes, device, seed):
    """x (M, H) standard normal; up (L, F, H) and down (L, H, F) normal / sqrt(fan-in); bfloat16."""
    generator = torch.Generator(device=device).manual_seed(seed)
    weights = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
    M, H, FFN, L = axes["m"], axes["hidden"], axes["ffn"], axes["layers"]

    def normal(*shape, source):
        return torch.randn(*shape, generator=source, device=device, dtype=torch.bfloat16)

    return {
        "x_MH": normal(M, H, source=generator),
        "up_LFH": normal(L, FFN, H, source=weights) * H**-0.5,
        "down_LHF": normal(L, H, FFN, source=weights) * FFN**-0.5,
    }


def blocks(x_MH, up_LFH, down_LHF):
    """The blocks, in the dtype of their inputs."""
    for up_FH, down_HF in zip(up_LFH, down_LHF, strict=True):
        x_MH = F.linear(F.gelu(F.linear(x_MH, up_FH), approximate="tanh"), down_HF)
    return x_MH


def reference(inputs):
    """The same in float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["x_MH"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    return blocks(*(inputs[name].to(wide) for name in READS))


def work(axes):
    """4 M H F FLOPs a block; weights of half a byte and a scale an e4m3 byte for 16, x read and the output written."""
    M, H, FFN, L = axes["m"], axes["hidden"], axes["ffn"], axes["layers"]
    return {
        "flops": 4 * M * H * FFN * L,
        "bytes": 2 * H * FFN * L * (0.5 + 1 / 16) + 4 * M * H,
        "dtype": "float4_e2m1fn_x2",
        "items": M,
        "item": "token",
    }


def build(inputs):
    """torch's Linear and GELU."""

    def run():
        return blocks(*(inputs[name] for name in READS))

    run.backend = "linear in bfloat16"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
