"""A mixture-of-experts layer of our own in Triton: routing and one grouped GEMM, two launches, no host in between.

Routing lists each expert's rows by atomic counters, in tables of fixed size, so that nothing of a batch's shape ever
goes to the host. The GEMM's programs find their expert from the counters; the row tiles of one expert and weight tile
stand beside each other, so the weight tile comes from memory once and then from L2. Rows are gathered as they are read
and scattered as they are written: no permuted copy of the activations exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tuning:
    """Rows, columns and depth of a tile, warps, tiles in flight: found by trying on an H200 (docs/pairs)."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    warps: int = 8
    stages: int = 4


ROUTE_TOKENS = 16


@triton.jit
def _route(
    logits, counts, rows, gates, tokens, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, WIDTH)
    there = token < tokens
    at = token[:, None] * EXPERTS + expert[None, :]
    inside = there[:, None] & (expert < EXPERTS)[None, :]
    logit = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    logit = tl.where(there[:, None], logit, 0.0)
    power = tl.exp(logit - tl.max(logit, 1)[:, None])
    total = tl.sum(power, 1)
    for choice in tl.static_range(TOP_K):
        best = tl.argmax(power, 1)
        gate = tl.max(power, 1) / total
        slot = tl.atomic_add(counts + best, 1, mask=there)
        tl.store(rows + best * (tokens * TOP_K) + slot, token * TOP_K + choice, mask=there)
        tl.store(gates + token * TOP_K + choice, gate, mask=there)
        power = tl.where(expert[None, :] == best[:, None], -1.0, power)


@triton.jit
def _grouped(
    x, w, w_desc, out, counts, rows, gates, most_rows, stride_x,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column_tiles: tl.constexpr = N // COLUMNS
    lane = tl.arange(0, WIDTH)
    count_E = tl.load(counts + lane, mask=lane < EXPERTS, other=0)
    tiles_E = (count_E + ROWS - 1) // ROWS
    ends_E = tl.cumsum(tiles_E, 0) * column_tiles
    expert = tl.sum((ends_E <= program).to(tl.int32), 0)
    if expert >= EXPERTS:
        return
    own = lane == expert
    count = tl.sum(tl.where(own, count_E, 0), 0)
    row_tiles = tl.sum(tl.where(own, tiles_E, 0), 0)
    local = program - tl.sum(tl.where(own, ends_E, 0), 0) + row_tiles * column_tiles
    first_column = (local // row_tiles) * COLUMNS
    place = (local % row_tiles) * ROWS + tl.arange(0, ROWS)
    there = place < count
    row = tl.load(rows + expert * most_rows + place, mask=there, other=0)
    x_at = (row // TOP_K).to(tl.int64)[:, None] * stride_x + tl.arange(0, DEPTH)[None, :]
    column = first_column + tl.arange(0, COLUMNS)
    w_at = (expert * N + column).to(tl.int64)[:, None] * K + tl.arange(0, DEPTH)[None, :]
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.range(0, K, DEPTH, num_stages=STAGES):
        tile_x = tl.load(x + x_at + k, mask=there[:, None], other=0.0)
        tile_w = w_desc.load([expert * N + first_column, k]) if COPY_ENGINE else tl.load(w + w_at + k)
        acc = tl.dot(tile_x, tl.trans(tile_w), acc, input_precision="ieee")
    acc = acc * tl.load(gates + row, mask=there, other=0.0)[:, None]
    tl.store(out + row.to(tl.int64)[:, None] * N + column[None, :], acc.to(out.dtype.element_ty), mask=there[:, None])


def route(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows an expert has (E,), their numbers token * top_k + choice (E, T * top_k), gates (T * top_k,)).

    Gates are the softmax over all experts, not normalised over the chosen (Switch Transformer, arXiv 2101.03961). Of
    the table only the first counts[e] entries of row e mean anything, in no particular order.
    """
    T, E = logits_TE.shape
    counts_E = torch.zeros(E, dtype=torch.int32, device=logits_TE.device)
    rows_ER = torch.empty(E, T * top_k, dtype=torch.int32, device=logits_TE.device)
    gates_R = torch.empty(T * top_k, dtype=torch.float32, device=logits_TE.device)
    _route[(triton.cdiv(T, ROUTE_TOKENS),)](
        logits_TE, counts_E, rows_ER, gates_R, T, EXPERTS=E, WIDTH=triton.next_power_of_2(E), TOP_K=top_k,
        TOKENS=ROUTE_TOKENS, num_warps=1,
    )  # fmt: skip
    return counts_E, rows_ER, gates_R


def moe_layer(
    x_TK: torch.Tensor, w_ENK: torch.Tensor, logits_TE: torch.Tensor, top_k: int, tuning: Tuning | None = None
) -> torch.Tensor:
    """(T, N): for each token the gated sum of its experts' x W^T. w as Linear stores it, contiguous, x's dtype.

    NotImplementedError for a shape that the tiles can't take.
    """
    chosen = tuning or Tuning()
    T, K = x_TK.shape
    E, N, _ = w_ENK.shape
    if N % chosen.columns or K % chosen.depth:
        raise NotImplementedError(f"N {N} and K {K} must be multiples of {chosen.columns} and {chosen.depth}")
    counts_E, rows_ER, gates_R = route(logits_TE, top_k)
    out_RN = torch.empty(T * top_k, N, dtype=x_TK.dtype, device=x_TK.device)
    copy_engine = x_TK.is_cuda and torch.cuda.get_device_capability()[0] >= 9
    flat = w_ENK.view(E * N, K)
    weights = TensorDescriptor.from_tensor(flat, [chosen.columns, chosen.depth]) if copy_engine else flat
    most_tiles = triton.cdiv(T * top_k, chosen.rows) + min(E, T * top_k)
    _grouped[(most_tiles * (N // chosen.columns),)](
        x_TK, flat, weights, out_RN, counts_E, rows_ER, gates_R, T * top_k, x_TK.stride(0),
        EXPERTS=E, WIDTH=triton.next_power_of_2(E), TOP_K=top_k, K=K, N=N, ROWS=chosen.rows, COLUMNS=chosen.columns,
        DEPTH=chosen.depth, STAGES=chosen.stages, COPY_ENGINE=copy_engine, num_warps=chosen.warps,
    )  # fmt: skip
    return out_RN if top_k == 1 else out_RN.view(T, top_k, N).sum(1)
