"""The same Linear layer in float8 (e4m3): weights cast once, activations cast as they come.

Candidates: NVIDIA Transformer Engine's recipes (delayed, current and block scaling), and torch's scaled product with a
scale a row behind one fused cast (serveproof/ops/quantize.py), as calls and as one CUDA graph. FP8 formats:
Micikevicius et al., arXiv 2209.05433.
"""

from __future__ import annotations

import torch

from serveproof.ops import quantize

READS = ("x_MK", "w_NK", "x8_MK", "x8_scale_M1")
RECIPES = {"delayed": "DelayedScaling", "current": "Float8CurrentScaling", "block": "Float8BlockScaling"}


def requires(device):
    """None on a CPU, where the numerics are checked; on CUDA the chip must have e4m3."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < (8, 9):
            return f"compute capability {major}.{minor} has no e4m3: it needs 8.9 or more"
    return None


def build(inputs):
    """The scaled product on a CPU; on CUDA the candidates."""
    if not inputs["x_MK"].is_cuda:
        return build_scaled(inputs)
    candidates = {
        "scaled_mm row-wise": lambda: build_scaled(inputs),
        "scaled_mm row-wise, graph": lambda: captured(build_scaled(inputs)),
    }
    return candidates | {f"te {name}": (lambda name=name: build_te(inputs, name)) for name in RECIPES}


def build_scaled(inputs):
    """torch._scaled_mm with a scale a row of x and of w; x is cast by one kernel unless it comes in float8."""
    w8_NK, w_scale_N1 = quantize.quantize_rows_torch(inputs["w_NK"])
    w8_KN, w_scale_1N = w8_NK.t(), w_scale_N1.t().contiguous()
    fast = {"use_fast_accum": True} if inputs["x_MK"].is_cuda else {}

    def run():
        if inputs["x8_MK"] is not None:
            x8_MK, x_scale_M1 = inputs["x8_MK"], inputs["x8_scale_M1"]
        else:
            x8_MK, x_scale_M1 = quantize.quantize_rows(inputs["x_MK"])
        return torch._scaled_mm(
            x8_MK, w8_KN, scale_a=x_scale_M1, scale_b=w_scale_1N, out_dtype=inputs["x_MK"].dtype, **fast
        )

    run.backend = "scaled_mm row-wise"
    run.plan = "weights cast once, outside the timed region"
    return run


def build_te(inputs, recipe_name):
    """transformer_engine.pytorch.Linear under autocast; the cast weights are cached from its first call on."""
    if inputs["x8_MK"] is not None:
        raise NotImplementedError("Transformer Engine's Linear casts its own input: it takes none in float8")
    try:
        import transformer_engine.pytorch as te
        from transformer_engine.common import recipe as recipes
    except (ImportError, OSError) as error:
        raise NotImplementedError(f"Transformer Engine can't be imported ({error}); envs/gpu.txt has it") from None
    x_MK, w_NK = inputs["x_MK"], inputs["w_NK"]
    linear = te.Linear(w_NK.shape[1], w_NK.shape[0], bias=False, params_dtype=w_NK.dtype, device=w_NK.device)
    recipe = getattr(recipes, RECIPES[recipe_name])()

    def call(first):
        with torch.no_grad(), te.autocast(enabled=True, recipe=recipe):
            return linear(x_MK, is_first_microbatch=first)

    with torch.no_grad():
        linear.weight.copy_(w_NK)
    call(True)

    def run():
        return call(False)

    run.plan = "weights cast at the first call, outside the timed region"
    return run


def captured(run):
    """One CUDA graph of the closure's calls, on the live inputs; its output tensor is the graph's own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay():
        graph.replay()
        return output

    replay.keeps = run  # the graph reads tensors that only the closure holds
    replay.plan = f"{run.plan}; the graph captured outside it"
    return replay
