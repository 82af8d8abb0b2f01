"""A Linear layer's product on any device: 16-bit numbers by way of float32 where a CPU has no units for them.

Such a CPU (AVX2 alone: most laptops, AMD before Zen 4) multiplies bfloat16 number by number. On one core of an AMD EPYC
(Zen 3) torch brought 9 GFLOP/s of bfloat16 and 58 of float32 at 64 rows or more. What it returns here is what units for
16 bits return: products summed in float32, rounded once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A few rows are bound by reading the weights, which 16 bits halve: widening them costs more than it saves.
NARROW_ROWS = 4
PIECE_WEIGHTS = 2**19  # widened at a time, 2 MiB: what caches hold is not written to memory and read again


def _has_units(dtype: str) -> bool:
    """Whether this CPU multiplies that dtype fast: what torch asks before it hands a product to oneDNN."""
    asked = f"_is_mkldnn_{dtype}_supported"
    return hasattr(torch.ops.mkldnn, asked) and bool(getattr(torch.ops.mkldnn, asked)())


CPU_UNITS = {torch.bfloat16: _has_units("bf16"), torch.float16: _has_units("fp16")}


def linear(x: Tensor, weight_NK: Tensor) -> Tensor:
    """x W^T [..., N], in x's dtype, of x [..., K] and a weight [N, K] of the same dtype, or torchao's of fewer bits."""
    outputs, inputs = weight_NK.shape
    packed = type(weight_NK) not in (Tensor, nn.Parameter)  # it brings its own product
    if x.is_cuda or CPU_UNITS.get(x.dtype, True) or packed or x.numel() <= NARROW_ROWS * inputs:
        return F.linear(x, weight_NK)
    wide, rows = x.float(), max(PIECE_WEIGHTS // inputs, 1)
    if outputs <= rows:
        return F.linear(wide, weight_NK.float()).to(x.dtype)
    return torch.cat([F.linear(wide, piece.float()).to(x.dtype) for piece in weight_NK.split(rows)], -1)


class Linear(nn.Linear):
    """nn.Linear without a bias, by `linear`."""

    def __init__(self, inputs: int, outputs: int, device: str | None = None) -> None:
        super().__init__(inputs, outputs, bias=False, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T [..., N] of x [..., K]."""
        return linear(x, self.weight)
