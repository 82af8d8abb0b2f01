"""Casting activations to float8 (e4m3) with a scale a row, in one launch: the largest magnitude of a row becomes 448.

The cast is what makes fp8 lose at decode sizes: amax, division and cast as torch operations are five launches beside
one product. One program reads a row once and writes it once.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
LEAST_AMAX = 1e-12  # a row of zeros has no scale of its own


def quantize_rows_torch(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x as float8_e4m3fn, scale (M, 1) float32) with x about their product; plain torch, any device."""
    scale_M1 = x_MK.float().abs().amax(1, keepdim=True).clamp(min=LEAST_AMAX) / E4M3_MAX
    scaled_MK = (x_MK.float() / scale_M1).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled_MK.to(torch.float8_e4m3fn), scale_M1


def quantize_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by one Triton kernel on CUDA; rows must be contiguous."""
    if not x_MK.is_cuda:
        return quantize_rows_torch(x_MK)
    from serveproof.ops.quantize_kernel import launch

    out_MK = torch.empty_like(x_MK, dtype=torch.float8_e4m3fn)
    scale_M1 = torch.empty(x_MK.shape[0], 1, dtype=torch.float32, device=x_MK.device)
    launch(x_MK, out_MK, scale_M1)
    return out_MK, scale_M1
