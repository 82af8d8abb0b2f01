"""Weight precisions with their real numerics, on any device.

Weight-only quantization of the layers' linear weights: the stored values (e4m3 numbers, int8 integers) are exact in
bf16, so a bf16 GEMM multiplies precisely what an fp8 or int8 weight-only kernel would, and the float32 scale is
applied to its output. One difference stays: here the GEMM's output is rounded to bf16 before the scale, where such a
kernel scales its float32 accumulator. Embedding, norms and LM head stay in bf16. Speed is not what this measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serveproof.engine.model import Llama
from serveproof.errors import UserError

E4M3_MAX = 448.0  # Micikevicius et al. 2022, arXiv:2209.05433: S.1111.110, the largest finite e4m3 value
INT8_MAX = 127.0  # symmetric: -128 is not used, so that negating a weight negates its code


@dataclass(frozen=True)
class Precision:
    """How the linear weights are stored and what the model computes in. granularity: what shares one float32 scale."""

    name: str
    description: str
    compute_dtype: torch.dtype
    weight_dtype: torch.dtype
    granularity: Literal["none", "tensor", "channel"] = "none"


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
    )
}


def get_precision(name: str) -> Precision:
    """The precision of that name; UserError listing what there is otherwise."""
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r} is unknown; there are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def quantize_weight(weight_NK: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Quantized values [N, K] in the precision's weight_dtype, and their scales, float32 [1] or [N].

    weight_NK: float32 [out, in]. weight is about values * scale. Round to nearest, ties to even; the scale maps the
    largest magnitude to the format's largest value, so that nothing overflows. An all-zero row gets scale 1.
    """
    largest = E4M3_MAX if precision.weight_dtype == torch.float8_e4m3fn else INT8_MAX
    weight_NK = weight_NK.float()
    amax_N = weight_NK.abs().amax(dim=1) if precision.granularity == "channel" else weight_NK.abs().amax().view(1)
    scale_N = torch.where(amax_N > 0, amax_N / largest, torch.ones_like(amax_N))
    # Clamped because the division may round just above the largest value, and torch's cast to e4m3 makes NaN of that.
    scaled_NK = (weight_NK / scale_N[:, None]).clamp(-largest, largest)
    if precision.weight_dtype == torch.int8:
        scaled_NK = scaled_NK.round()
    return scaled_NK.to(precision.weight_dtype), scale_N


class QuantizedLinear(nn.Module):
    """Linear layer with quantized weights held exactly in bf16, and a float32 scale on the GEMM's output."""

    values_NK: Tensor
    scale_N: Tensor

    def __init__(self, weight_NK: Tensor, precision: Precision) -> None:
        super().__init__()
        values_NK, scale_N = quantize_weight(weight_NK, precision)
        self.register_buffer("values_NK", values_NK.to(torch.bfloat16))
        self.register_buffer("scale_N", scale_N)

    def forward(self, x_BLK: Tensor) -> Tensor:
        return (F.linear(x_BLK, self.values_NK).float() * self.scale_N).to(x_BLK.dtype)


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
                    quantized = QuantizedLinear(child.weight, precision)
                    weight_bytes += quantized.values_NK.numel() * precision.weight_dtype.itemsize
                    weight_bytes += quantized.scale_N.numel() * quantized.scale_N.itemsize
                    setattr(parent, name, quantized)
    # Parameter by parameter, for Module.to(dtype) would round the float32 scales as well.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision.compute_dtype)
        weight_bytes += parameter.numel() * precision.compute_dtype.itemsize
    return weight_bytes
