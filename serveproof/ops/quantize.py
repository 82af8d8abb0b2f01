"""Casting activations to float8 (e4m3), a scale a row in one launch or a scale a tensor in two: the largest magnitude
of a row, or of the tensor, becomes 448.

The cast is what makes fp8 lose at decode sizes: amax, division and cast as torch operations are five launches beside
one product. One program reads a row once and writes it once; a scale a tensor needs all of x read before. A NaN or an
infinity of x stays in the output: its row (or the tensor) dequantises to NaN there, never to a number.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
LEAST_AMAX = 1e-12  # a row of zeros has no scale of its own; one whose largest value is smaller loses precision


def _cast(x_MK: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x_MK.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _scale(amax: torch.Tensor) -> torch.Tensor:
    # by a tensor: on CUDA torch divides by a number as it multiplies by its inverse, a unit of the last place off
    return amax.clamp(min=LEAST_AMAX) / torch.full_like(amax, E4M3_MAX)


def quantize_rows_torch(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x as float8_e4m3fn, scale (M, 1) float32) with x about their product; plain torch, any device."""
    scale_M1 = _scale(x_MK.float().abs().amax(1, keepdim=True))
    return _cast(x_MK, scale_M1), scale_M1


def quantize_tensor_torch(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x as float8_e4m3fn, scale () float32); plain torch, any device."""
    scale = _scale(x_MK.float().abs().amax())
    return _cast(x_MK, scale), scale


def quantize_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_rows_torch by one Triton kernel on CUDA; rows must be contiguous."""
    if not x_MK.is_cuda:
        return quantize_rows_torch(x_MK)
    from serveproof.ops.quantize_kernel import launch

    out_MK = torch.empty_like(x_MK, dtype=torch.float8_e4m3fn)
    scale_M1 = torch.empty(x_MK.shape[0], 1, dtype=torch.float32, device=x_MK.device)
    launch(x_MK, out_MK, scale_M1)
    return out_MK, scale_M1


def quantize_tensor(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_tensor_torch by a reduction of torch's and one Triton kernel on CUDA; x must be contiguous."""
    if not x_MK.is_cuda:
        return quantize_tensor_torch(x_MK)
    from serveproof.ops.quantize_kernel import launch_tensor

    amax = torch.linalg.vector_norm(x_MK, float("inf"), dtype=torch.float32)
    out_MK = torch.empty_like(x_MK, dtype=torch.float8_e4m3fn)
    scale = torch.empty((), dtype=torch.float32, device=x_MK.device)
    launch_tensor(x_MK, amax, out_MK, scale)
    return out_MK, scale
