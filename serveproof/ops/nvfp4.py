"""NVFP4 in plain torch: what a Blackwell chip computes, for checking numerics where there is none.

Values of 4 bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), a scale in e4m3 for every 16 of them, and one
float32 scale a tensor that brings the block scales into e4m3's range. Source: NVIDIA, 'Introducing NVFP4 for Efficient
and Accurate Low-Precision Inference' (developer blog, 2025), and Transformer Engine's NVFP4BlockScaling.
"""

from __future__ import annotations

import torch

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1_MAX, E4M3_MAX, BLOCK = 6.0, 448.0, 16


def to_e2m1(x: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 value, ties to the even code, beyond 6 saturated; float32."""
    bounds = ((E2M1[1:] + E2M1[:-1]) / 2).to(x.device)
    magnitude = x.abs().float()
    below, above = torch.bucketize(magnitude, bounds), torch.bucketize(magnitude, bounds, right=True)
    code = torch.where(below % 2 == 0, below, above)
    return E2M1.to(x.device)[code] * x.sign()


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x quantised to NVFP4 along its last dimension (a multiple of 16) and back; float32."""
    if x.shape[-1] % BLOCK:
        raise ValueError(f"the last dimension is {x.shape[-1]}, which is not whole blocks of {BLOCK}")
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    tensor_scale = blocks.abs().amax().clamp(min=1e-30) / (E2M1_MAX * E4M3_MAX)
    wanted = blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * tensor_scale)
    block_scale = wanted.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
    scale = block_scale * tensor_scale
    values = to_e2m1(blocks / torch.where(scale == 0, 1.0, scale)) * scale
    return values.flatten(-2)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T with both in NVFP4, summed in float32."""
    return rounded(x) @ rounded(weight).T
