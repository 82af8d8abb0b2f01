"""The same Linear layer in float8 (e4m3): weights cast once, activations cast as they come.

Candidates: NVIDIA Transformer Engine's recipes (delayed, current and block scaling), and torch's scaled product with a
scale a row behind one fused cast (serveproof/ops/quantize.py) or a scale a tensor, as calls and as one CUDA graph. FP8
formats: Micikevicius et al., arXiv 2209.05433.
"""

from __future__ import annotations

from functools import partial

import torch

from serveproof.ops import quantize

READS = ("x_MK", "w_NK", "x8_MK", "x8_scale_M1")
RECIPES = {"delayed": "DelayedScaling", "current": "Float8CurrentScaling", "block": "Float8BlockScaling"}
CALIBRATION_CALLS = 2


def requires(device):
    """None on a CPU, where the numerics are checked; on CUDA the chip must have e4m3."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < (8, 9):
            return f"compute capability {major}.{minor} has no e4m3: it needs 8.9 or more"
    return None


def metrics(inputs):
    """Bytes of the cast weights and their scales, a scale a row."""
    N, K = inputs["w_NK"].shape
    return {"weight_bytes": (N * K + 4 * N, "bytes", "float8 and a float32 scale a row, without the bfloat16 copy")}


def build(inputs):
    """The candidates; on a CPU torch's scaled products alone."""
    calls = {
        "scaled_mm row-wise": partial(build_scaled, inputs),
        "scaled_mm tensor-wise": partial(build_scaled, inputs, by="tensor"),
    }
    if not inputs["x_MK"].is_cuda:
        return calls
    calls["scaled_mm row-wise, full accumulation"] = partial(build_scaled, inputs, fast_accumulation=False)
    calls |= {f"te {name}": partial(build_te, inputs, name) for name in RECIPES}
    return calls | {f"{name}, graph": partial(captured, make) for name, make in calls.items()}


def build_scaled(inputs, by="row", fast_accumulation=True):
    """torch._scaled_mm with a scale a row of x and of w, or a scale each; x is cast here unless it comes in float8.

    Fast accumulation: a Hopper tensor core keeps partial sums in fewer bits than float32, without it they are promoted
    to float32 every few instructions. A CPU has no such choice.
    """
    w_NK = inputs["w_NK"]
    if w_NK.dtype != torch.bfloat16:
        raise NotImplementedError(f"the scaled product writes bfloat16 here; the layer is in {w_NK.dtype}")
    if w_NK.shape[0] % 16 or w_NK.shape[1] % 16:
        raise NotImplementedError(f"float8 products take K and N in whole 16s; w is {tuple(w_NK.shape)}")
    if by == "tensor" and inputs["x8_MK"] is not None:
        raise NotImplementedError("x comes in float8 with a scale a row: there is no scale a tensor")
    cast_w = quantize.quantize_rows_torch if by == "row" else quantize.quantize_tensor_torch
    cast_x = quantize.quantize_rows if by == "row" else quantize.quantize_tensor
    w8_NK, w_scale = cast_w(w_NK)
    w8_KN = w8_NK.t()
    if by == "row":
        w_scale = w_scale.t().contiguous()
    fast = {"use_fast_accum": fast_accumulation} if w_NK.is_cuda else {}

    def run():
        if inputs["x8_MK"] is not None:
            x8_MK, x_scale = inputs["x8_MK"], inputs["x8_scale_M1"]
        else:
            x8_MK, x_scale = cast_x(inputs["x_MK"])
        return torch._scaled_mm(x8_MK, w8_KN, scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16, **fast)

    run.plan = "weights cast once, outside the timed region"
    return run


def build_te(inputs, recipe_name):
    """transformer_engine.pytorch.Linear under autocast; the cast weights are cached (is_first_microbatch).

    Delayed scaling starts from scales of 1 and updates them when autocast is left, but only with gradients on
    (quantization.py, autocast_exit). Left at 1, weights of size 1 / sqrt(K) are cast to e4m3's subnormals. So it is
    calibrated with gradients on; what serves then runs without, on scales that no longer change.
    """
    if inputs["x8_MK"] is not None:
        raise NotImplementedError("Transformer Engine's Linear casts its own input: it takes none in float8")
    try:
        import transformer_engine.pytorch as te
        from transformer_engine.common import recipe as recipes
    except (ImportError, OSError) as error:
        raise NotImplementedError(f"Transformer Engine can't be imported ({error}); envs/gpu.txt has it") from None
    x_MK, w_NK = inputs["x_MK"], inputs["w_NK"]
    linear = te.Linear(w_NK.shape[1], w_NK.shape[0], bias=False, params_dtype=w_NK.dtype, device=w_NK.device)
    linear.requires_grad_(False)
    linear.weight.copy_(w_NK)
    recipe = getattr(recipes, RECIPES[recipe_name])()

    def call(first, gradients=False):
        with torch.set_grad_enabled(gradients), te.autocast(enabled=True, recipe=recipe):
            return linear(x_MK, is_first_microbatch=first)

    if recipe_name == "delayed":
        for _ in range(CALIBRATION_CALLS):
            call(True, gradients=True)
    call(True)

    def run():
        return call(False)

    scales = "; scales calibrated on the inputs of the set-up, then fixed" if recipe_name == "delayed" else ""
    run.plan = f"weights cast and cached, outside the timed region{scales}"
    return run


def captured(make):
    """One CUDA graph of the calls of the closure that `make` makes, on the live inputs; its output is the graph's."""
    run = make()
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


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
