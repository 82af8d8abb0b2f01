"""The Triton kernels behind serveproof.ops.quantize: apart from it because a CPU may have no triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)
LEAST_AMAX = tl.constexpr(1e-12)
TENSOR_WIDTH, TENSOR_WARPS = 4096, 4


@triton.jit
def _clamped(x, scale):
    # By default maximum and minimum drop a NaN: a broken activation would come out as -448, a number like any other.
    # div_rn, here and below: Triton's own division may be off by two units of the last place, a CPU's never is.
    low = tl.maximum(tl.div_rn(x, scale), -E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rows(x, out, scales, stride_x, K: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    x_K = tl.load(x + row * stride_x + k, mask=k < K, other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x_K), 0), LEAST_AMAX)
    scale = tl.div_rn(amax, tl.full((), E4M3_MAX, tl.float32))
    tl.store(out + row * K + k, _clamped(x_K, scale).to(out.dtype.element_ty), mask=k < K)
    tl.store(scales + row, scale)


@triton.jit
def _tensor(x, amax, out, scale_out, elements, WIDTH: tl.constexpr):
    program = tl.program_id(0)
    at = program.to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    most = tl.maximum(tl.load(amax), LEAST_AMAX, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.div_rn(most, tl.full((), E4M3_MAX, tl.float32))
    x_W = tl.load(x + at, mask=at < elements, other=0.0).to(tl.float32)
    tl.store(out + at, _clamped(x_W, scale).to(out.dtype.element_ty), mask=at < elements)
    if program == 0:
        tl.store(scale_out, scale)


def launch(x_MK: torch.Tensor, out_MK: torch.Tensor, scale_M1: torch.Tensor) -> None:
    """Fill out (M, K) and scale (M, 1) from x (M, K), whose last dimension is contiguous."""
    M, K = x_MK.shape
    width = triton.next_power_of_2(K)
    warps = min(16, max(1, width // 512))
    _rows[(M,)](x_MK, out_MK, scale_M1, x_MK.stride(0), K=K, WIDTH=width, num_warps=warps)


def launch_tensor(x_MK: torch.Tensor, amax: torch.Tensor, out_MK: torch.Tensor, scale: torch.Tensor) -> None:
    """Fill out (M, K) and scale () from a contiguous x (M, K) and its largest magnitude amax () float32."""
    programs = triton.cdiv(x_MK.numel(), TENSOR_WIDTH)
    _tensor[(programs,)](x_MK, amax, out_MK, scale, x_MK.numel(), WIDTH=TENSOR_WIDTH, num_warps=TENSOR_WARPS)
