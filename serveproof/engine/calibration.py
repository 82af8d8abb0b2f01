"""Precisions that are calibrated on real activations, by torchao: AWQ, SmoothQuant, GPTQ.

torchao's quantized tensors take the place of the layers' weights, so the model's own forward runs torchao's kernels.
torchao 0.18's GPTQ asserts CUDA, and its int4 there needs mslk: `refusal` says so, and nothing stands in for it. The
weights are held in bf16 while they are calibrated. Sources: AWQ, Lin et al. 2023, arXiv:2306.00978; SmoothQuant, Xiao
et al. 2022, arXiv:2211.10438; GPTQ, Frantar et al. 2022, arXiv:2210.17323.
"""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import torch
from torch import Tensor, nn

from serveproof.engine.model import Llama
from serveproof.errors import UserError

GROUP = 32  # inputs that share an int4 scale and zero point, as in the engine's own int4
KERNEL_OUTPUTS = 32  # torchao's int4 kernel on a CPU takes multiples of so many outputs
AWQ_SCALES = 10  # exponents tried from 0 up to 1: a second a ten layers of 135 M parameters on two cores


@dataclass(frozen=True)
class Calibrated:
    """A precision made by torchao from a model in bf16 and a calibrating text. bits: of a weight."""

    name: str
    description: str
    method: Literal["none", "awq", "smoothquant", "gptq"]
    bits: Literal[4, 8]
    devices: tuple[str, ...] = ("cpu", "cuda")
    reason: str = ""

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the model computes in beside the quantized products."""
        return torch.bfloat16


CALIBRATED = {
    one.name: one
    for one in (
        Calibrated("int4_group32", "linear weights int4, a scale and a zero point for 32 inputs; torchao", "none", 4),
        Calibrated("int4_awq", "int4_group32 with input channels scaled by activations (AWQ); torchao", "awq", 4),
        Calibrated(
            "int8_smoothquant",
            "linear weights int8 a channel, inputs int8 a row, smoothed by activations (SmoothQuant); torchao",
            "smoothquant",
            8,
        ),
        Calibrated(
            "int8_gptq",
            "linear weights int8 a channel, rounding errors made up for by second-order GPTQ; torchao",
            "gptq",
            8,
            devices=("cuda",),
            reason="torchao's GPTQ runs on CUDA only",
        ),
    )
}


def refusal(precision: Calibrated, device: str) -> str:
    """Why a device can't have a precision, or ''."""
    return "" if device in precision.devices else precision.reason


def _base(precision: Calibrated, device: str) -> Any:
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    if precision.bits == 8:
        made: Any = Int8DynamicActivationInt8WeightConfig if precision.method == "smoothquant" else Int8WeightOnlyConfig
        return made(set_inductor_config=False)
    if device == "cpu":
        return PrototypeInt4WeightOnlyConfig(group_size=GROUP)
    packing = "tile_packed_to_4d"  # tinygemm's: the plain format needs mslk
    return Int4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False, int4_packing_format=packing)


def _steps(precision: Calibrated, base: Any, inputs: int) -> tuple[Any, Any]:
    """torchao's configs before and after the calibrating text. inputs: of the widest layer."""
    from torchao.prototype.awq import AWQConfig
    from torchao.prototype.gptq import GPTQConfig
    from torchao.prototype.smoothquant import SmoothQuantConfig

    if precision.method == "awq":
        first, second = (AWQConfig(base, step, AWQ_SCALES) for step in ("prepare", "convert"))
        return first, second
    if precision.method == "smoothquant":
        first, second = (SmoothQuantConfig(base, step) for step in ("prepare", "convert"))
        return first, second
    # torchao 0.18 takes a row's scale from its first block of columns alone, and clamps what is larger in the others.
    first, second = (GPTQConfig(step, base, gptq_quantize_block_size=inputs) for step in ("observe", "convert"))
    return first, second


def _is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not name.endswith("gate")


@torch.no_grad()
def calibrate_(model: Llama, precision: Calibrated, tokens_BL: Tensor) -> int:
    """Bring the layers of a freshly loaded model to a precision, in place; weight_bytes as quantization.quantize_'s.

    tokens_BL: the calibrating text, int64 [B, L]; it should not be what is scored. UserError where the device has no
    kernel for it, or a layer's shape does not fit it.
    """
    device = model.embed_tokens.weight.device.type
    problem = refusal(precision, device)
    if problem:
        raise UserError(f"precision {precision.name}: {problem}")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    layers = model.layers
    found = {name: module for name, module in layers.named_modules() if _is_linear(module, name)}
    weights = sum(int(module.weight.numel()) for module in found.values())
    for name, module in found.items():
        _check(precision, name, module)
    rest = sum(parameter.numel() for parameter in model.parameters()) - weights
    extra = sum(_scale_bytes(precision, module) for module in found.values())
    for noisy in ("torchao", "torch.utils._pytree"):  # it tells of each CUDA library that a CPU lacks
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from torchao.quantization import quantize_

    base = _base(precision, device)
    if precision.method == "none":
        quantize_(layers, base, filter_fn=_is_linear)
    else:
        prepare, convert = _steps(precision, base, max(module.in_features for module in found.values()))
        quantize_(layers, prepare, filter_fn=_is_linear)
        model.full(tokens_BL)
        with redirect_stdout(StringIO()):  # GPTQ counts its layers there
            quantize_(layers, convert, filter_fn=_is_linear)
    return int(weights * precision.bits // 8 + extra + 2 * rest)


def _check(precision: Calibrated, name: str, layer: nn.Module) -> None:
    outputs, inputs = layer.weight.shape  # type: ignore[misc]
    if precision.bits == 4 and (inputs % GROUP or outputs % KERNEL_OUTPUTS):
        raise UserError(
            f"precision {precision.name}: {name} is {outputs} x {inputs}, torchao's int4 takes multiples of "
            f"{KERNEL_OUTPUTS} x {GROUP}; leave it out of perplexity.precisions"
        )


def _scale_bytes(precision: Calibrated, layer: nn.Module) -> int:
    """bf16 scales: of int4 with zero points, of int8 one a channel; and one an input where inputs are scaled."""
    outputs, inputs = layer.weight.shape  # type: ignore[misc]
    own = 4 * outputs * (inputs // GROUP) if precision.bits == 4 else 2 * outputs
    return int(own + (2 * inputs if precision.method in ("awq", "smoothquant") else 0))
