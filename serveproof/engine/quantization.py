"""Weight precisions with their real numerics, on any device.

The layers' linear weights are quantized (their inputs too where the precision says so): the stored values (e4m3
numbers, int8 integers) are exact in bf16, so a bf16 GEMM multiplies precisely what an fp8 or int8 kernel would, and the
float32 scale is applied to its output. One difference stays: here the GEMM's output is rounded to bf16 before the
scale, where such a kernel scales its float32 accumulator. Embedding, norms and LM head stay in bf16. Speed is not what
this measures. Precisions that are calibrated on activations are serveproof.engine.calibration's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serveproof.engine.model import Llama
from serveproof.errors import UserError
from serveproof.ops import nvfp4
from serveproof.ops.linear import linear
from serveproof.ops.quantize import E4M3_MAX, quantize_rows_torch

E4M3_EXPONENT = 8  # of e4m3's largest value, S.1111.110 (Micikevicius et al. 2022, arXiv:2209.05433)
INT8_MAX = 127.0  # symmetric: -128 is not used, so that negating a weight negates its code
BLOCK = 128  # rows and columns of a block with one float32 scale (DeepSeek-V3, arXiv:2412.19437)
MX_BLOCK = 32  # inputs of a row with one power of two (OCP Microscaling Formats v1.0)


@dataclass(frozen=True)
class Precision:
    """How the linear weights are stored and what the model computes in. granularity: what shares one scale.

    inputs_too: the layers' inputs are quantised as well, a scale a row, as they come.
    """

    name: str
    description: str
    compute_dtype: torch.dtype
    weight_dtype: torch.dtype
    granularity: Literal["none", "tensor", "channel", "block", "mx", "nvfp4"] = "none"
    inputs_too: bool = False


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "all weights and operations fp32", torch.float32, torch.float32),
        Precision("bf16", "all weights and operations bf16", torch.bfloat16, torch.bfloat16),
        Precision(
            "fp8_e4m3_tensor",
            "linear weights fp8 e4m3, one scale a tensor",
            torch.bfloat16,
            torch.float8_e4m3fn,
            "tensor",
        ),
        Precision(
            "fp8_e4m3_channel",
            "linear weights fp8 e4m3, one scale a channel",
            torch.bfloat16,
            torch.float8_e4m3fn,
            "channel",
        ),
        Precision(
            "int8_channel",
            "linear weights symmetric int8, one scale a channel",
            torch.bfloat16,
            torch.int8,
            "channel",
        ),
        Precision(
            "fp8_e4m3_dynamic",
            "linear weights fp8 e4m3, one scale a channel, and their inputs, one scale a row",
            torch.bfloat16,
            torch.float8_e4m3fn,
            "channel",
            inputs_too=True,
        ),
        Precision(
            "fp8_e4m3_block",
            "linear weights fp8 e4m3, one scale a block of 128 x 128",
            torch.bfloat16,
            torch.float8_e4m3fn,
            "block",
        ),
        Precision(
            "mxfp8_e4m3",
            "linear weights fp8 e4m3, a power of two for 32 inputs (MX)",
            torch.bfloat16,
            torch.float8_e4m3fn,
            "mx",
        ),
        Precision(
            "nvfp4",
            "linear weights and their inputs NVFP4: e2m1, an e4m3 scale for 16, one float32 scale a tensor",
            torch.bfloat16,
            torch.float32,
            "nvfp4",
            inputs_too=True,
        ),
    )
}


def get_precision(name: str) -> Precision:
    """The precision of that name; UserError listing what there is otherwise."""
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r} is unknown; there are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def quantize_weight(weight_NK: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Quantized values [N, K] in the precision's weight_dtype, and their scales, float32.

    weight_NK: float32 [out, in]. Scales are [1] (tensor), [N] (channel), [N / 128, K / 128] (block) or [N, K / 32]
    (mx), the last blocks perhaps smaller; weight is about values * scale. Round to nearest, ties to even. But for mx
    the scale maps the largest magnitude to the format's largest value, so that nothing overflows; mx's is the power of
    two of OCP's section 6.3, and what lies above 448 saturates. All-zero weights get scale 1.
    """
    weight_NK = weight_NK.float()
    magnitude_NK = weight_NK.abs()
    if precision.granularity == "block":
        largest = _block_amax(magnitude_NK, BLOCK, BLOCK)
    elif precision.granularity == "mx":
        largest = _block_amax(magnitude_NK, 1, MX_BLOCK)
    else:
        largest = magnitude_NK.amax(dim=1) if precision.granularity == "channel" else magnitude_NK.amax().view(1)
    format_max = E4M3_MAX if precision.weight_dtype == torch.float8_e4m3fn else INT8_MAX
    # By a tensor: on CUDA torch divides by a number as it multiplies by its inverse, a unit of the last place off.
    scale = torch.where(largest > 0, largest / torch.full_like(largest, format_max), torch.ones_like(largest))
    if precision.granularity == "mx":
        exponent = torch.frexp(largest).exponent - 1 - E4M3_EXPONENT
        scale = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), torch.ones_like(largest))
    # Clamped because the division may round just above the largest value; what a cast to e4m3 does there differs from
    # one torch to the next.
    scaled_NK = (weight_NK / spread(scale, precision, weight_NK.shape)).clamp(-format_max, format_max)
    if precision.weight_dtype == torch.int8:
        scaled_NK = scaled_NK.round()
    return scaled_NK.to(precision.weight_dtype), scale


def spread(scale: Tensor, precision: Precision, shape: torch.Size) -> Tensor:
    """The scales as something that multiplies the values [N, K]: [1, 1], [N, 1] or [N, K]."""
    if scale.dim() == 1:
        return scale[:, None]
    height, width = (BLOCK, BLOCK) if precision.granularity == "block" else (1, MX_BLOCK)
    return scale.repeat_interleave(height, 0)[: shape[0]].repeat_interleave(width, 1)[:, : shape[1]]


def _block_amax(magnitude_NK: Tensor, height: int, width: int) -> Tensor:
    rows, columns = magnitude_NK.shape
    whole = F.pad(magnitude_NK, (0, -columns % width, 0, -rows % height))
    largest: Tensor = whole.unflatten(0, (-1, height)).unflatten(2, (-1, width)).amax((1, 3))
    return largest


class QuantizedLinear(nn.Module):
    """Linear layer with quantized weights held exactly in bf16, and a float32 scale on the GEMM's output.

    mx's scales are powers of two, which bf16 holds with the values; block's are applied to one product a block of
    inputs, summed in float32.
    """

    values_NK: Tensor
    scale_N: Tensor

    def __init__(self, weight_NK: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision, (self.outputs, self.inputs) = precision, weight_NK.shape
        values_NK, scale = quantize_weight(weight_NK, precision)
        self.scale_count = scale.numel()
        held_NK = values_NK.to(torch.bfloat16)
        if precision.granularity == "mx":
            held_NK = held_NK * spread(scale, precision, weight_NK.shape).to(torch.bfloat16)
            scale = torch.ones(1, device=scale.device)
        elif precision.granularity == "block":
            scale = scale.repeat_interleave(BLOCK, 0)[: self.outputs]
        self.register_buffer("values_NK", held_NK)
        self.register_buffer("scale_N", scale)

    @property
    def weight_bytes(self) -> int:
        """As they would be stored: a byte a value, and 4 a scale; mx's scales are a byte each."""
        return self.values_NK.numel() + self.scale_count * (1 if self.precision.granularity == "mx" else 4)

    def forward(self, x_BLK: Tensor) -> Tensor:
        dtype = x_BLK.dtype
        values_NK = self.values_NK.to(dtype)  # bf16 as a rule
        scale_BL1: Tensor | None = None
        if self.precision.inputs_too:
            q_MK, scale_M1 = quantize_rows_torch(x_BLK.flatten(0, -2))
            x_BLK, scale_BL1 = q_MK.to(dtype).view(x_BLK.shape), scale_M1.view(*x_BLK.shape[:-1], 1)
        if self.scale_N.dim() == 1:
            out_BLN = linear(x_BLK, values_NK).float() * self.scale_N
        else:
            pieces = zip(x_BLK.split(BLOCK, -1), values_NK.split(BLOCK, 1), self.scale_N.unbind(1), strict=True)
            out_BLN = torch.stack([linear(x, values).float() * scale for x, values, scale in pieces]).sum(0)
        return (out_BLN if scale_BL1 is None else out_BLN * scale_BL1).to(dtype)


class Nvfp4Linear(nn.Module):
    """Linear layer with weights and inputs rounded to NVFP4, products summed in float32 (serveproof.ops.nvfp4)."""

    def __init__(self, weight_NK: Tensor, precision: Precision) -> None:
        super().__init__()
        outputs, inputs = weight_NK.shape
        if inputs % nvfp4.BLOCK:
            raise UserError(
                f"{precision.name}: a layer of {inputs} inputs is not whole blocks of {nvfp4.BLOCK}; leave it out of "
                f"perplexity.precisions"
            )
        self.values_NK = nvfp4.rounded(weight_NK)
        self.weight_bytes = outputs * inputs // 2 + outputs * inputs // nvfp4.BLOCK + 4

    def forward(self, x_BLK: Tensor) -> Tensor:
        return F.linear(nvfp4.rounded(x_BLK), self.values_NK).to(x_BLK.dtype)


def quantized(weight_NK: Tensor, precision: Precision) -> QuantizedLinear | Nvfp4Linear:
    """The layer of a float32 weight in a precision that quantizes."""
    return (Nvfp4Linear if precision.granularity == "nvfp4" else QuantizedLinear)(weight_NK, precision)


def quantize_(model: Llama, precision: Precision) -> int:
    """Bring a freshly loaded float32 model to a precision, in place; returns weight_bytes, as they would be stored.

    weight_bytes: linear weights at their stored width plus 4 bytes a scale, all else at the compute width; a tied
    embedding counts once.
    """
    weight_bytes = 0
    if precision.granularity != "none":
        for parent in list(model.layers.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    made = quantized(child.weight, precision)
                    weight_bytes += made.weight_bytes
                    setattr(parent, name, made)
    # Parameter by parameter, for Module.to(dtype) would round the float32 scales as well.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision.compute_dtype)
        weight_bytes += parameter.numel() * precision.compute_dtype.itemsize
    return weight_bytes
