"""The Triton kernel behind serveproof.ops.quantize: apart from it because a CPU may have no triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)
LEAST_AMAX = tl.constexpr(1e-12)


@triton.jit
def _rows(x, out, scales, stride_x, K: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    x_K = tl.load(x + row * stride_x + k, mask=k < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x_K), 0), LEAST_AMAX) / E4M3_MAX
    scaled_K = tl.minimum(tl.maximum(x_K / scale, -E4M3_MAX), E4M3_MAX)
    tl.store(out + row * K + k, scaled_K.to(out.dtype.element_ty), mask=k < K)
    tl.store(scales + row, scale)


def launch(x_MK: torch.Tensor, out_MK: torch.Tensor, scale_M1: torch.Tensor) -> None:
    """Fill out (M, K) and scale (M, 1) from x (M, K), whose last dimension is contiguous."""
    M, K = x_MK.shape
    width = triton.next_power_of_2(K)
    warps = min(16, max(1, width // 512))
    _rows[(M,)](x_MK, out_MK, scale_M1, x_MK.stride(0), K=K, WIDTH=width, num_warps=warps)
