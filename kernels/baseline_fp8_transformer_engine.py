"""A Linear layer of an MLP block in bfloat16: y = x W^T, as served before anything is quantised.

Weights come from one fixed seed, whatever the inputs' seed is: a server casts them once, so the optimized side may too.

axes: m (rows of x), k, n, dtype; optional activations: "float8" when the operation before has quantised x already, as a
norm with a fused cast does (default "cast": casting x is part of the work).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from serveproof.ops.quantize import quantize_rows_torch

READS = ("x_MK", "w_NK")
WEIGHT_SEED = 7


def make_inputs(axes, device, seed):
    """x (M, K) standard normal, w (N, K) normal / sqrt(K); x also as float8 with row scales where the axes say so."""
    dtype = getattr(torch, axes["dtype"])
    generator = torch.Generator(device=device).manual_seed(seed)
    weights = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
    inputs = {
        "x_MK": torch.randn(axes["m"], axes["k"], generator=generator, device=device, dtype=dtype),
        "w_NK": torch.randn(axes["n"], axes["k"], generator=weights, device=device, dtype=dtype) * axes["k"] ** -0.5,
        "x8_MK": None,
        "x8_scale_M1": None,
    }
    if axes.get("activations", "cast") == "float8":
        inputs["x8_MK"], inputs["x8_scale_M1"] = quantize_rows_torch(inputs["x_MK"])
    return inputs


def reference(inputs):
    """The product of the unquantised matrices, float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["x_MK"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    return F.linear(inputs["x_MK"].to(wide), inputs["w_NK"].to(wide))


def work(axes):
    """2 M K N FLOPs at float8's rate; float8 weights read, x read in the form it comes in, y written."""
    M, K, N = axes["m"], axes["k"], axes["n"]
    itemsize = getattr(torch, axes["dtype"]).itemsize
    x_itemsize = 1 if axes.get("activations") == "float8" else itemsize
    return {
        "flops": 2 * M * K * N,
        "bytes": N * K + M * K * x_itemsize + M * N * itemsize,
        "dtype": "float8_e4m3fn",
        "items": M,
        "item": "token",
    }


def metrics(inputs):
    """Bytes of the weights."""
    return {"weight_bytes": (inputs["w_NK"].nbytes, "bytes", "as they are stored for this side")}


def build(inputs):
    """torch's Linear."""

    def run():
        return F.linear(inputs["x_MK"], inputs["w_NK"])

    run.backend = "linear in bfloat16"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
