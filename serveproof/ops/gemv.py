"""Triton kernels for the dense parts of a decode step: few rows, so the time is the reading of the weights.

Each kernel is one matrix product of M <= 16 rows with what stands around it: RMSNorm before it, RoPE and the cache
write, SiLU and the product with `up`, or the residual behind it. The sum over the input is in float32 by one program a
block of output columns. M = 1 multiplies and sums in registers; more rows go through the tensor cores with the
weights as the tall operand (the rows padded to 16).

rmsnorm(x) W^T = rsqrt(mean(x^2) + eps) * ((x * g) W^T): so the norm needs no pass of its own.

Programmatic dependent launch (PDL; CUDA programming guide, 'Programmatic Dependent Launch and Synchronization'): with
pdl, a kernel starts while the one before it drains, loads its first weights, which depend on nothing, and waits
(griddepcontrol.wait) before it reads what the other wrote. Every kernel of a chain waits, so the order is transitive.
Needs sm_90. Weights (F, E) are read as torch.nn.Linear keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from serveproof.ops.decode_step import EPS

TENSOR_CORE_ROWS = 16  # rows of a block of the tensor-core path


@dataclass(frozen=True)
class Config:
    """Launch shape of one kernel: output columns and input elements a step, warps, pipeline stages."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 1


@triton.jit
def prefetch_l2(ptr, program, LANES: tl.constexpr, CHUNK: tl.constexpr):
    """Ask for LANES chunks of CHUNK bytes to be brought into L2; don't wait (PTX cp.async.bulk.prefetch.L2, sm_90)."""
    lanes = program.to(tl.int64) * LANES + tl.arange(0, LANES)
    address = ptr.to(tl.int64) + lanes * CHUNK
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [address, tl.full([LANES], CHUNK, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def product(
    x_ptr, g_ptr, w_ptr, n_N,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_N, M_PAD]: rows n_N of w (any, K) times the M rows of x (M, K), normalised with g if NORM."""
    k_K = tl.arange(0, BLOCK_K)
    w_ptrs = w_ptr + n_N.to(tl.int64)[:, None] * K + k_K[None, :]
    if M_PAD == 1:
        w_NK = tl.load(w_ptrs, eviction_policy="evict_first")
        if PDL:
            tl.extra.cuda.gdc_wait()
        sum_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        square_K = tl.zeros([BLOCK_K], tl.float32)
        for k in tl.static_range(0, K, BLOCK_K):
            now_NK = w_NK
            if k + BLOCK_K < K:
                w_NK = tl.load(w_ptrs + (k + BLOCK_K), eviction_policy="evict_first")
            x_K = tl.load(x_ptr + k + k_K).to(tl.float32)
            if NORM:
                square_K += x_K * x_K
                x_K *= tl.load(g_ptr + k + k_K).to(tl.float32)
            sum_NK += now_NK.to(tl.float32) * x_K[None, :]
        out_NM = tl.sum(sum_NK, axis=1)[:, None]
        if NORM:
            out_NM *= tl.rsqrt(tl.sum(square_K) / K + EPS)
    else:
        m_M = tl.arange(0, M_PAD)
        out_NM = tl.zeros([BLOCK_N, M_PAD], tl.float32)
        square_M = tl.zeros([M_PAD], tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
        for k in tl.range(0, K, BLOCK_K):
            w_NK = tl.load(w_ptrs + k, eviction_policy="evict_first")
            x_KM = tl.load(x_ptr + m_M[None, :] * K + (k + k_K)[:, None], mask=m_M[None, :] < M, other=0.0)
            if NORM:
                wide_KM = x_KM.to(tl.float32)
                square_M += tl.sum(wide_KM * wide_KM, axis=0)
                g_K = tl.load(g_ptr + k + k_K).to(tl.float32)
                x_KM = (wide_KM * g_K[:, None]).to(w_NK.dtype)
            out_NM = tl.dot(w_NK, x_KM, out_NM, input_precision="ieee")
        if NORM:
            out_NM *= tl.rsqrt(square_M / K + EPS)[None, :]
    return out_NM


@triton.jit
def halves(x_NM, BLOCK_N: tl.constexpr, M_PAD: tl.constexpr):
    """Even rows and odd rows of x (BLOCK_N, M_PAD), each (BLOCK_N / 2, M_PAD)."""
    return tl.split(tl.permute(tl.reshape(x_NM, (BLOCK_N // 2, 2, M_PAD)), (0, 2, 1)))


@triton.jit
def linear_kernel(
    x_ptr, g_ptr, w_ptr, out_ptr, N,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out (M, N) = [rmsnorm](x) w^T, or out += that where ADD. N is a multiple of BLOCK_N."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    n_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_M = tl.arange(0, M_PAD)
    sum_NM = product(x_ptr, g_ptr, w_ptr, n_N, K, M, M_PAD, NORM, EPS, BLOCK_N, BLOCK_K, PDL)
    out_ptrs = out_ptr + m_M[None, :].to(tl.int64) * N + n_N[:, None]
    mask = (m_M[None, :] < M) & (n_N[:, None] < N)
    if ADD:
        sum_NM += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptrs, sum_NM.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_up_kernel(
    x_ptr, g_ptr, w_ptr, out_ptr, F,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, EPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out (M, F) = silu(gate) * up of rmsnorm(x); w (2 F, K): gate's rows, then up's, taken in turns here."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    r_N = tl.arange(0, BLOCK_N)
    first = tl.program_id(0) * (BLOCK_N // 2)
    m_M = tl.arange(0, M_PAD)
    n_N = first + r_N // 2 + (r_N % 2) * F
    sum_NM = product(x_ptr, g_ptr, w_ptr, n_N, K, M, M_PAD, True, EPS, BLOCK_N, BLOCK_K, PDL)
    gate_HM, up_HM = halves(sum_NM, BLOCK_N, M_PAD)
    f_H = first + tl.arange(0, BLOCK_N // 2)
    out_HM = gate_HM / (1.0 + tl.exp(-gate_HM)) * up_HM
    out_ptrs = out_ptr + m_M[None, :] * F + f_H[:, None]
    tl.store(out_ptrs, out_HM.to(out_ptr.dtype.element_ty), mask=(m_M[None, :] < M) & (f_H[:, None] < F))


@triton.jit
def qkv_kernel(
    x_ptr, g_ptr, w_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_ptr, k_ptr, v_ptr, prefetch_ptr,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, EPS: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
    PREFETCH: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """rmsnorm, fused projection, RoPE; q to (M, HEADS, D), k and v to their slots of caches (slots, KV_HEADS, D).

    BLOCK_N divides D: a program's columns are pairs (i, i + D / 2) of one head. PREFETCH programs more ask for the
    weights that come after attention, so that memory works while attention, which needs little of it, runs.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    PROGRAMS: tl.constexpr = (HEADS + 2 * KV_HEADS) * D // BLOCK_N
    if tl.program_id(0) >= PROGRAMS:
        if PREFETCH > 0:
            prefetch_l2(prefetch_ptr, tl.program_id(0) - PROGRAMS, LANES, CHUNK)
    else:
        r_N = tl.arange(0, BLOCK_N)
        m_M = tl.arange(0, M_PAD)
        first = tl.program_id(0) * BLOCK_N
        head = first // D
        pair = (first % D) // 2
        n_N = head * D + pair + r_N // 2 + (r_N % 2) * (D // 2)
        sum_NM = product(x_ptr, g_ptr, w_ptr, n_N, K, M, M_PAD, True, EPS, BLOCK_N, BLOCK_K, PDL)
        low_RM, high_RM = halves(sum_NM, BLOCK_N, M_PAD)
        real_M = m_M < M
        mask_RM = (tl.arange(0, BLOCK_N // 2)[:, None] >= 0) & real_M[None, :]
        i_R = pair + tl.arange(0, BLOCK_N // 2)
        if head < HEADS + KV_HEADS:
            position_M = tl.load(positions_ptr + m_M, mask=real_M, other=0)
            angle_RM = position_M[None, :] * (D // 2) + i_R[:, None]
            cos_RM = tl.load(cos_ptr + angle_RM)
            sin_RM = tl.load(sin_ptr + angle_RM)
            turned_RM = low_RM * cos_RM - high_RM * sin_RM
            high_RM = high_RM * cos_RM + low_RM * sin_RM
            low_RM = turned_RM
        if head < HEADS:
            to = q_ptr + (m_M[None, :] * HEADS + head) * D + i_R[:, None]
            tl.store(to, low_RM.to(q_ptr.dtype.element_ty), mask=mask_RM)
            tl.store(to + D // 2, high_RM.to(q_ptr.dtype.element_ty), mask=mask_RM)
        else:
            slot_M = tl.load(slots_ptr + m_M, mask=real_M, other=0)
            kv_head = (head - HEADS) % KV_HEADS
            offset = (slot_M[None, :] * KV_HEADS + kv_head) * D + i_R[:, None]
            if head < HEADS + KV_HEADS:
                tl.store(k_ptr + offset, low_RM.to(k_ptr.dtype.element_ty), mask=mask_RM)
                tl.store(k_ptr + offset + D // 2, high_RM.to(k_ptr.dtype.element_ty), mask=mask_RM)
            else:
                tl.store(v_ptr + offset, low_RM.to(v_ptr.dtype.element_ty), mask=mask_RM)
                tl.store(v_ptr + offset + D // 2, high_RM.to(v_ptr.dtype.element_ty), mask=mask_RM)


def fits(columns: int, inner: int, config: Config) -> bool:
    """Whether a weight of `columns` outputs and `inner` inputs is whole blocks."""
    return columns % config.block_n == 0 and inner % config.block_k == 0


def _shared(x: Tensor, weight: Tensor, columns: int, config: Config, pdl: bool) -> dict[str, object]:
    """The launch arguments that all kernels share; ValueError where a shape isn't a multiple of its block."""
    rows, inner = x.shape
    if not fits(columns, inner, config) or rows > TENSOR_CORE_ROWS:
        raise ValueError(f"x {tuple(x.shape)}, weight {tuple(weight.shape)}: not multiples of the blocks of {config}")
    launch: dict[str, object] = {
        "K": inner, "M": rows, "M_PAD": 1 if rows == 1 else TENSOR_CORE_ROWS, "EPS": EPS, "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k, "PDL": pdl, "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip
    return launch | ({"launch_pdl": True} if pdl else {})


def linear(x: Tensor, norm: Tensor | None, weight: Tensor, out: Tensor, add: bool, config: Config, pdl: bool) -> None:
    """out (M, N) = [rmsnorm(x) or x] weight^T, added to out where `add`."""
    columns = weight.shape[0]
    linear_kernel[(columns // config.block_n,)](
        x, x if norm is None else norm, weight, out, columns,
        NORM=norm is not None, ADD=add, **_shared(x, weight, columns, config, pdl),
    )  # fmt: skip


def gate_up(x: Tensor, norm: Tensor, weight: Tensor, out: Tensor, config: Config, pdl: bool) -> None:
    """out (M, F) = silu(gate) * up of rmsnorm(x), weight (2 F, E)."""
    columns = weight.shape[0]
    gate_up_kernel[(columns // config.block_n,)](
        x, norm, weight, out, columns // 2, **_shared(x, weight, columns, config, pdl)
    )


def qkv(
    x: Tensor, norm: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor,
    q: Tensor, k: Tensor, v: Tensor, config: Config, pdl: bool, prefetch: Tensor | None, prefetch_bytes: int,
) -> None:  # fmt: skip
    """q (M, H, D) and the new slots of k, v (slots, KVH, D); brings the first bytes of `prefetch` into L2 meanwhile."""
    heads, depth, kv_heads = q.shape[1], q.shape[2], k.shape[1]
    columns = (heads + 2 * kv_heads) * depth
    if depth % config.block_n:
        raise ValueError(f"head_dim {depth} is not a multiple of block_n {config.block_n}")
    programs, lanes, chunk = prefetch_plan(prefetch, prefetch_bytes, config.warps)
    qkv_kernel[(columns // config.block_n + programs,)](
        x, norm, weight, cos, sin, positions, slots, q, k, v, x if prefetch is None else prefetch,
        HEADS=heads, KV_HEADS=kv_heads, D=depth, PREFETCH=programs, LANES=lanes, CHUNK=chunk,
        **_shared(x, weight, columns, config, pdl),
    )  # fmt: skip


def prefetch_plan(tensor: Tensor | None, wanted_bytes: int, warps: int) -> tuple[int, int, int]:
    """(programs, lanes a program, bytes a lane) that bring at most `wanted_bytes` of a tensor into L2."""
    lanes, chunk = 32 * warps, 2048
    if tensor is None:
        return 0, lanes, chunk
    return min(wanted_bytes, tensor.numel() * tensor.element_size()) // (lanes * chunk), lanes, chunk


def is_cuda_90(tensor: Tensor) -> bool:
    """Whether PDL and bulk prefetch exist where this tensor lives."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device)[0] >= 9
