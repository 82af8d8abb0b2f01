"""The dense parts of a decode step of our own in Triton: a few rows times a weight matrix, what surrounds it fused.

At one row a step does nothing but read weights; a kernel's start and end, 2 us each, are what it loses. So norm,
rotation, activation and residual live in the product they belong to: four kernels a layer. A norm's factor is one
number a row, so it is applied after the product, and its sum of squares is taken along the way. Rows are padded to 16
for the tensor cores. The same signatures as serveproof.ops.decode_step. Idea: Hazy Research's Llama-1B megakernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from serveproof.ops.decode_step import EPSILON, Layer, Weights


@dataclass(frozen=True)
class Tuning:
    """Weight rows and columns a tile, warps, tiles in flight: found by trying on an H200 (docs/pairs)."""

    rows: int
    columns: int
    warps: int
    stages: int


QKV = Tuning(16, 256, 4, 4)
OUT = Tuning(16, 256, 4, 5)
GATE_UP = Tuning(32, 256, 4, 4)
DOWN = Tuning(16, 512, 4, 5)
HEAD = Tuning(64, 128, 4, 5)
MOST_ROWS = 16


@triton.jit
def _product(
    x, w, norm, at_row, batch, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """(rows of w) x (rows of x, padded to 16), float32; `at_row` are the rows of w."""
    lane = tl.arange(0, 16)
    acc = tl.zeros([ROWS, 16], tl.float32)
    squares = tl.zeros([16], tl.float32)
    for k in tl.range(0, K, COLUMNS, num_stages=STAGES):
        column = k + tl.arange(0, COLUMNS)
        tile_w = tl.load(w + at_row[:, None] * K + column[None, :])
        tile_x = tl.load(x + lane[:, None] * K + column[None, :], mask=(lane < batch)[:, None], other=0.0)
        if NORM:
            wide = tile_x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            tile_x = (wide * tl.load(norm + column).to(tl.float32)[None, :]).to(tile_x.dtype)
        acc = tl.dot(tile_w, tl.trans(tile_x), acc, input_precision="ieee")
    return acc, squares


@triton.jit
def _plain(
    x, w, norm, residual, y, batch, N: tl.constexpr, K: tl.constexpr, EPSILON: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    acc, squares = _product(x, w, norm, row, batch, K, COLUMNS, ROWS, STAGES, NORM)
    if NORM:
        acc = acc * tl.rsqrt(squares / K + EPSILON)[None, :]
    lane = tl.arange(0, 16)
    at = lane[None, :] * N + row[:, None]
    there = (lane < batch)[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=there)


@triton.jit
def _gate_up(
    x, w, norm, y, batch, N: tl.constexpr, K: tl.constexpr, EPSILON: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    lane = tl.arange(0, 16)
    gate = tl.zeros([ROWS, 16], tl.float32)
    up = tl.zeros([ROWS, 16], tl.float32)
    squares = tl.zeros([16], tl.float32)
    for k in tl.range(0, K, COLUMNS, num_stages=STAGES):
        column = k + tl.arange(0, COLUMNS)
        tile_gate = tl.load(w + row[:, None] * K + column[None, :])
        tile_up = tl.load(w + (row + N)[:, None] * K + column[None, :])
        tile_x = tl.load(x + lane[:, None] * K + column[None, :], mask=(lane < batch)[:, None], other=0.0)
        wide = tile_x.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        tile_x = (wide * tl.load(norm + column).to(tl.float32)[None, :]).to(tile_x.dtype)
        gate = tl.dot(tile_gate, tl.trans(tile_x), gate, input_precision="ieee")
        up = tl.dot(tile_up, tl.trans(tile_x), up, input_precision="ieee")
    factor = tl.rsqrt(squares / K + EPSILON)[None, :]
    gate = gate * factor
    result = gate / (1.0 + tl.exp(-gate)) * (up * factor)
    tl.store(y + lane[None, :] * N + row[:, None], result.to(y.dtype.element_ty), mask=(lane < batch)[None, :])


@triton.jit
def _qkv(
    x, w, norm, q, k_cache, v_cache, cos, sin, position, batch, stride_b, stride_s,
    QH: tl.constexpr, KVH: tl.constexpr, D: tl.constexpr, K: tl.constexpr, EPSILON: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = D // 2 // ROWS
    number = tl.program_id(0) // parts
    part = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    low_row = (number * D + part).to(tl.int64)
    lane = tl.arange(0, 16)
    low = tl.zeros([ROWS, 16], tl.float32)
    high = tl.zeros([ROWS, 16], tl.float32)
    squares = tl.zeros([16], tl.float32)
    for k in tl.range(0, K, COLUMNS, num_stages=STAGES):
        column = k + tl.arange(0, COLUMNS)
        tile_low = tl.load(w + low_row[:, None] * K + column[None, :])
        tile_high = tl.load(w + (low_row + D // 2)[:, None] * K + column[None, :])
        tile_x = tl.load(x + lane[:, None] * K + column[None, :], mask=(lane < batch)[:, None], other=0.0)
        wide = tile_x.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        tile_x = (wide * tl.load(norm + column).to(tl.float32)[None, :]).to(tile_x.dtype)
        low = tl.dot(tile_low, tl.trans(tile_x), low, input_precision="ieee")
        high = tl.dot(tile_high, tl.trans(tile_x), high, input_precision="ieee")
    factor = tl.rsqrt(squares / K + EPSILON)[None, :]
    low = low * factor
    high = high * factor
    there = (lane < batch)[None, :]
    at = tl.load(position)
    if number < QH + KVH:
        cos_R = tl.load(cos + at * (D // 2) + part)[:, None]
        sin_R = tl.load(sin + at * (D // 2) + part)[:, None]
        turned = low * cos_R - high * sin_R
        high = high * cos_R + low * sin_R
        low = turned
    if number < QH:
        to = q + lane[None, :] * (QH * D) + number * D + part[:, None]
        tl.store(to, low.to(q.dtype.element_ty), mask=there)
        tl.store(to + D // 2, high.to(q.dtype.element_ty), mask=there)
    elif number < QH + KVH:
        to = k_cache + lane[None, :] * stride_b + at * stride_s + (number - QH) * D + part[:, None]
        tl.store(to, low.to(q.dtype.element_ty), mask=there)
        tl.store(to + D // 2, high.to(q.dtype.element_ty), mask=there)
    else:
        to = v_cache + lane[None, :] * stride_b + at * stride_s + (number - QH - KVH) * D + part[:, None]
        tl.store(to, low.to(q.dtype.element_ty), mask=there)
        tl.store(to + D // 2, high.to(q.dtype.element_ty), mask=there)


def _linear(
    x_BK: torch.Tensor,
    w_NK: torch.Tensor,
    norm_K: torch.Tensor | None,
    residual_BN: torch.Tensor | None,
    tuning: Tuning,
) -> torch.Tensor:
    B, K = x_BK.shape
    N = w_NK.shape[0]
    check(x_BK, N, K, tuning)
    y_BN = x_BK.new_empty(B, N)
    _plain[(N // tuning.rows,)](
        x_BK, w_NK, x_BK if norm_K is None else norm_K, x_BK if residual_BN is None else residual_BN, y_BN, B,
        N=N, K=K, EPSILON=EPSILON, NORM=norm_K is not None, RESIDUAL=residual_BN is not None, ROWS=tuning.rows,
        COLUMNS=min(tuning.columns, K), STAGES=tuning.stages, num_warps=tuning.warps,
    )  # fmt: skip
    return y_BN


def check(x_BK: torch.Tensor, N: int, K: int, tuning: Tuning) -> None:
    """NotImplementedError for a shape that the tiles can't take."""
    if x_BK.shape[0] > MOST_ROWS:
        raise NotImplementedError(f"{x_BK.shape[0]} rows: these kernels take at most {MOST_ROWS}")
    if N % tuning.rows or K % min(tuning.columns, K):
        raise NotImplementedError(f"a weight of {N} x {K} is not whole tiles of {tuning.rows} x {tuning.columns}")


def qkv(
    h_BE: torch.Tensor,
    layer: Layer,
    weights: Weights,
    position_1: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
) -> torch.Tensor:
    """As decode_step.qkv."""
    B, E = h_BE.shape
    D = k_BSHD.shape[-1]
    rows = min(QKV.rows, D // 2)
    check(h_BE, layer.qkv.shape[0], E, Tuning(rows, QKV.columns, QKV.warps, QKV.stages))
    q_BHD = h_BE.new_empty(B, weights.q_heads, D)
    heads = weights.q_heads + 2 * weights.kv_heads
    _qkv[(heads * (D // 2 // rows),)](
        h_BE, layer.qkv, layer.norm_E, q_BHD, k_BSHD, v_BSHD, weights.cos, weights.sin, position_1, B,
        k_BSHD.stride(0), k_BSHD.stride(1), QH=weights.q_heads, KVH=weights.kv_heads, D=D, K=E, EPSILON=EPSILON,
        ROWS=rows, COLUMNS=min(QKV.columns, E), STAGES=QKV.stages, num_warps=QKV.warps,
    )  # fmt: skip
    return q_BHD


def out(attended_BE: torch.Tensor, h_BE: torch.Tensor, layer: Layer) -> torch.Tensor:
    """As decode_step.out."""
    return _linear(attended_BE, layer.out, None, h_BE, OUT)


def mlp(h_BE: torch.Tensor, layer: Layer) -> torch.Tensor:
    """As decode_step.mlp."""
    B, E = h_BE.shape
    N = layer.down.shape[1]
    check(h_BE, N, E, GATE_UP)
    hidden_BF = h_BE.new_empty(B, N)
    _gate_up[(N // GATE_UP.rows,)](
        h_BE, layer.gate_up, layer.mlp_norm_E, hidden_BF, B, N=N, K=E, EPSILON=EPSILON, ROWS=GATE_UP.rows,
        COLUMNS=min(GATE_UP.columns, E), STAGES=GATE_UP.stages, num_warps=GATE_UP.warps,
    )  # fmt: skip
    return _linear(hidden_BF, layer.down, None, h_BE, DOWN)


def head(h_BE: torch.Tensor, weights: Weights) -> torch.Tensor:
    """As decode_step.head."""
    return _linear(h_BE, weights.head, weights.norm_E, None, HEAD)
