"""What stands between the products and attention of a transformer block, in three Triton kernels.

Eager, a block of a decode step launches some thirty kernels that each read and write a few hundred kilobytes; here they
are three: residual add with RMSNorm, head norms with RoPE and the cache write, SiLU times up. Rounded where the
separate operations round. The same cuts as vLLM's and SGLang's fused kernels. N rows, D hidden, H query and K KV heads,
E head dimension, F width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Private there only in name: a new one would expire what was measured of the pairs that stand on that file.
from serveproof.ops.quantize_kernel import _clamped as clamped

HEADS_A_PROGRAM = 16
SILU_WIDTH = 1024


@triton.jit
def _add_norm(x_ptr, delta_ptr, weight_ptr, out_ptr, eps, ADD: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, WIDTH)
    x_D = tl.load(x_ptr + row + d, mask=d < D, other=0.0)
    if ADD:
        delta_D = tl.load(delta_ptr + row + d, mask=d < D, other=0.0)
        x_D = (x_D.to(tl.float32) + delta_D.to(tl.float32)).to(x_D.dtype)
        tl.store(x_ptr + row + d, x_D, mask=d < D)
    wide_D = x_D.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide_D * wide_D, 0) / D + eps)
    normed_D = (wide_D * scale).to(x_D.dtype).to(tl.float32)
    weight_D = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + d, (normed_D * weight_D).to(x_D.dtype), mask=d < D)


def add_norm(x_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of x + delta, where x becomes that sum in place; of x itself without a delta. Contiguous rows."""
    out_ND = torch.empty_like(x_ND)
    D = x_ND.shape[1]
    width = triton.next_power_of_2(D)
    _add_norm[(len(x_ND),)](
        x_ND, x_ND if delta_ND is None else delta_ND, weight_D, out_ND, eps,
        ADD=delta_ND is not None, D=D, WIDTH=width, num_warps=min(16, max(1, width // 512)),
    )  # fmt: skip
    return out_ND


@triton.jit
def _rope_write(
    qkv_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, q_ptr, k_ptr, v_ptr, scales_k_ptr,
    scales_v_ptr, eps, H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """One row and HEADS heads of q, k and v: both halves of each."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    e = tl.arange(0, HALF)
    real = (h[:, None] < H + 2 * K) & (e[None, :] < E // 2)
    from_he = qkv_ptr + row * (H + 2 * K) * E + h[:, None] * E + e[None, :]
    dtype = q_ptr.dtype.element_ty
    low = tl.load(from_he, mask=real, other=0.0).to(tl.float32)
    high = tl.load(from_he + E // 2, mask=real, other=0.0).to(tl.float32)
    is_q, is_v = h < H, h >= H + K
    turned = (~is_v)[:, None]
    if NORM:
        scale_h = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / E + eps)[:, None]
        some = e < E // 2
        q_low, q_high = tl.load(q_norm_ptr + e, mask=some), tl.load(q_norm_ptr + E // 2 + e, mask=some)
        k_low, k_high = tl.load(k_norm_ptr + e, mask=some), tl.load(k_norm_ptr + E // 2 + e, mask=some)
        w_low = tl.where(is_q[:, None], q_low[None, :].to(tl.float32), k_low[None, :].to(tl.float32))
        w_high = tl.where(is_q[:, None], q_high[None, :].to(tl.float32), k_high[None, :].to(tl.float32))
        low = tl.where(turned, (low * scale_h).to(dtype).to(tl.float32) * w_low, low)
        high = tl.where(turned, (high * scale_h).to(dtype).to(tl.float32) * w_high, high)
    position = tl.load(positions_ptr + row)
    cos = tl.load(cos_ptr + position * (E // 2) + e, mask=e < E // 2, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * (E // 2) + e, mask=e < E // 2, other=0.0)[None, :]
    new_low = tl.where(turned, low * cos - high * sin, low)
    new_high = tl.where(turned, high * cos + low * sin, high)
    to_q = q_ptr + row * H * E + h[:, None] * E + e[None, :]
    mask_q = real & is_q[:, None]
    tl.store(to_q, new_low.to(dtype), mask=mask_q)
    tl.store(to_q + E // 2, new_high.to(dtype), mask=mask_q)
    slot = tl.load(slots_ptr + row)
    kv = tl.where(is_v, h - H - K, h - H)
    offset = slot * K * E + kv[:, None] * E + e[None, :]
    mask_k, mask_v = real & (turned & (h >= H)[:, None]), real & is_v[:, None]
    if SCALED:
        # the values as the unfused path rounds them, then to e4m3
        scale_k = tl.load(scales_k_ptr + kv, mask=(h >= H) & (h < H + K), other=1.0)
        scale_v = tl.load(scales_v_ptr + kv, mask=is_v & (h < H + 2 * K), other=1.0)
        scale = tl.where(is_v, scale_v, scale_k)[:, None]
        new_low = clamped(new_low.to(dtype).to(tl.float32), scale)
        new_high = clamped(new_high.to(dtype).to(tl.float32), scale)
    cached = k_ptr.dtype.element_ty
    tl.store(k_ptr + offset, new_low.to(cached), mask=mask_k)
    tl.store(k_ptr + offset + E // 2, new_high.to(cached), mask=mask_k)
    tl.store(v_ptr + offset, new_low.to(cached), mask=mask_v)
    tl.store(v_ptr + offset + E // 2, new_high.to(cached), mask=mask_v)


def rope_write(
    qkv_NF: Tensor, cos_Pf: Tensor, sin_Pf: Tensor, positions_N: Tensor, slots_N: Tensor, heads: int, k_SKE: Tensor,
    v_SKE: Tensor, scales: tuple[Tensor, Tensor] | None = None, norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0, q_NHE: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """q [N, H, E] with positions rotated in, written where it is given; k and v go to rows `slots` of the flat cache
    [S, K, E].

    qkv [N, (H + 2 K) E] contiguous; cos, sin float32 tables [P, E / 2] by position; positions, slots int64. scales: of
    k's and v's heads, float32 [K] each, for an e4m3 cache. norms: weights [E] of the query and key heads' RMSNorm.
    """
    K, E = k_SKE.shape[1:]
    if q_NHE is None:
        q_NHE = torch.empty(len(qkv_NF), heads, E, dtype=qkv_NF.dtype, device=qkv_NF.device)
    if not len(qkv_NF):
        return q_NHE
    k_scales, v_scales = scales or (cos_Pf, cos_Pf)
    q_norm, k_norm = norms or (qkv_NF, qkv_NF)
    _rope_write[(len(qkv_NF), triton.cdiv(heads + 2 * K, HEADS_A_PROGRAM))](
        qkv_NF, cos_Pf, sin_Pf, positions_N, slots_N, q_norm, k_norm, q_NHE, k_SKE, v_SKE, k_scales, v_scales, eps,
        H=heads, K=K, E=E, HEADS=HEADS_A_PROGRAM, HALF=triton.next_power_of_2(E // 2), NORM=norms is not None,
        SCALED=scales is not None, num_warps=2,
    )  # fmt: skip
    return q_NHE


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, F: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    gate = tl.load(gate_up_ptr + row * 2 * F + f, mask=f < F, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * F + F + f, mask=f < F, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out_ptr + row * F + f, (silu * up.to(tl.float32)).to(gate.dtype), mask=f < F)


def silu_mul(gate_up_NF: Tensor) -> Tensor:
    """silu(gate) * up [N, F] of gate and up side by side [N, 2 F], contiguous."""
    N, width = len(gate_up_NF), gate_up_NF.shape[1] // 2
    out_NF = torch.empty(N, width, dtype=gate_up_NF.dtype, device=gate_up_NF.device)
    _silu_mul[(N, triton.cdiv(width, SILU_WIDTH))](gate_up_NF, out_NF, F=width, WIDTH=SILU_WIDTH, num_warps=4)
    return out_NF
