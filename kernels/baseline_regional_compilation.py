"""A stack of equal layers compiled as one graph by torch.compile: every layer is traced and lowered again.

Llama-like blocks (RMSNorm, attention, SwiGLU) or, with activation "gelu", the plain MLP blocks of the public B200
record. metrics() measures a cold and a warm start and the eager step, in a process of its own.

axes: layers, batch, seq, hidden, ffn, norm ("rmsnorm" or "layernorm"), activation ("swiglu" or "gelu"), dtype;
optional heads (attention, with norm "rmsnorm").
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

READS = ("model", "x_BSE")
PROBE = "alone"
WEIGHT_SEED = 7
EAGER_CALLS = 10


class Block(torch.nn.Module):
    """One layer: norm and attention with residual when there are heads; norm and MLP with residual."""

    def __init__(self, axes, generator, device, dtype):
        super().__init__()
        E, FFN = axes["hidden"], axes["ffn"]
        self.heads, self.gelu = axes.get("heads", 0), axes["activation"] == "gelu"

        def weight(rows, columns):
            values = torch.randn(rows, columns, generator=generator, device=device) * columns**-0.5
            return torch.nn.Parameter(values.to(dtype), requires_grad=False)

        if self.heads:
            self.qkv, self.out = weight(3 * E, E), weight(E, E)
        self.up, self.down = weight(FFN if self.gelu else 2 * FFN, E), weight(E, FFN)

    def forward(self, x_BSE):
        E = x_BSE.shape[-1:]
        if self.heads:
            q, k, v = F.linear(F.rms_norm(x_BSE, E), self.qkv).unflatten(-1, (3, self.heads, -1)).unbind(2)
            out_BHSD = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
            x_BSE = x_BSE + F.linear(out_BHSD.transpose(1, 2).flatten(2), self.out)
        if self.gelu:
            return x_BSE + F.linear(F.gelu(F.linear(F.layer_norm(x_BSE, E), self.up)), self.down)
        gate, up = F.linear(F.rms_norm(x_BSE, E), self.up).chunk(2, dim=-1)
        return x_BSE + F.linear(F.silu(gate) * up, self.down)


class Stack(torch.nn.Module):
    """The layers one after another."""

    def __init__(self, axes, device, dtype):
        super().__init__()
        generator = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
        self.layers = torch.nn.ModuleList(Block(axes, generator, device, dtype) for _ in range(axes["layers"]))

    def forward(self, x_BSE):
        for layer in self.layers:
            x_BSE = layer(x_BSE)
        return x_BSE


def make_inputs(axes, device, seed):
    """x (B, S, E) standard normal, and the model with weights from one fixed seed."""
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    shape = axes["batch"], axes["seq"], axes["hidden"]
    return {
        "x_BSE": torch.randn(*shape, generator=generator, device=device, dtype=dtype),
        "model": Stack(axes, device, dtype),
        "start": start_times,
    }


def reference(inputs):
    """The layers in float64 on a CPU, float32 on CUDA, one widened at a time."""
    wide = torch.float32 if inputs["x_BSE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    x_BSE = inputs["x_BSE"].to(wide)
    for layer in inputs["model"].layers:
        parameters = {name: value.to(wide) for name, value in layer.named_parameters()}
        x_BSE = torch.func.functional_call(layer, parameters, x_BSE)
    return x_BSE


def work(axes):
    """2 FLOPs a weight and token, and causal attention's; weights read once, x read and the output written."""
    E, FFN, L = axes["hidden"], axes["ffn"], axes["layers"]
    heads = axes.get("heads", 0)
    weights = L * ((2 if axes["activation"] == "gelu" else 3) * E * FFN + (4 * E * E if heads else 0))
    tokens = axes["batch"] * axes["seq"]
    attention = 2 * L * tokens * axes["seq"] * E if heads else 0
    itemsize = getattr(torch, axes["dtype"]).itemsize
    return {
        "flops": 2 * weights * tokens + attention,
        "bytes": (weights + 2 * tokens * E) * itemsize,
        "dtype": axes["dtype"],
        "items": tokens,
        "item": "token",
    }


def start_times(compiled_run, eager_run):
    """Cold start (empty compile caches), warm start (caches kept) and the eager step, as metrics.

    compiled_run() makes a compiled closure and calls it once. Both starts begin after torch._dynamo.reset(); libraries
    are loaded and CUDA runs already. One start each: a figure without an interval.
    """
    from torch._inductor.utils import fresh_cache

    def seconds(call):
        torch._dynamo.reset()
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    eager_run()
    with fresh_cache():
        cold_s, warm_s = seconds(compiled_run), seconds(compiled_run)
    times = []
    for _ in range(EAGER_CALLS):
        started = time.perf_counter()
        eager_run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "cold_start": (cold_s, "s", "compile with empty caches, and the first call; one start"),
        "warm_start": (warm_s, "s", "the same again with the caches of the first; one start"),
        "eager_step": (sorted(times)[EAGER_CALLS // 2] * 1e3, "ms", f"not compiled: median of {EAGER_CALLS} calls"),
    }


def whole(inputs):
    """The whole model compiled, not called yet."""
    compiled = torch.compile(inputs["model"], dynamic=False)
    return lambda: compiled(inputs["x_BSE"])


def metrics(inputs):
    """Start times of the whole model's compilation."""
    return start_times(lambda: whole(inputs)(), lambda: inputs["model"](inputs["x_BSE"]))


def build(inputs):
    """torch.compile of the whole model, called once so that it is compiled."""
    run = whole(inputs)
    run()
    run.backend = "torch.compile, whole model"
    return run
