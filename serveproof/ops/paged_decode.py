"""Paged decode attention of our own in Triton: split over the keys, GQA packed into one tensor-core tile.

A decode step reads every key and value once and computes little: the only limit is memory bandwidth. The keys of a
sequence are cut into chunks; a program handles one chunk of one KV head for all query heads that share it, so keys are
read once, with several tiles in flight. Partial results are merged by their log-sum-exp: Flash-Decoding (Dao et al.,
2023, pytorch.org/blog/flash-decoding); block tables: PagedAttention, arXiv 2309.06180.

A float8 (e4m3) cache has a scale a KV head. e4m3 widens to float16 exactly, so the products are float16's there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tuning:
    """Tokens a program, tokens a tile, warps, tiles in flight: found by trying on an H200 (docs/pairs)."""

    chunk: int
    tile: int
    warps: int
    stages: int


# (head dimension, bytes an element) -> tuning; others take the nearest smaller tile that fits shared memory
TUNINGS = {
    (64, 2): Tuning(1024, 128, 4, 3),
    (128, 2): Tuning(1024, 128, 4, 3),
    (64, 1): Tuning(2048, 64, 2, 3),
    (128, 1): Tuning(2048, 64, 2, 3),
}
DEFAULT = Tuning(512, 32, 4, 2)
# For a step that must not launch a second kernel to merge: every sequence is one chunk.
ONE_CHUNK = Tuning(4096, 64, 4, 3)


def tuning_of(head_dim: int, itemsize: int) -> Tuning:
    """The tuning for a head dimension and element size."""
    return TUNINGS.get((head_dim, itemsize), DEFAULT)


@dataclass
class Plan:
    """Who does what in one decode step, made once for all its layers: tensors that a graph may keep reading.

    item_seq, item_start: (items,) the sequence and first token of each chunk, -1 where there is no such item.
    first_B, count_B: where a sequence's items begin and how many there are. merges: False when each sequence is known
    to be one chunk, whose program then writes the output itself. The rest are buffers for partial results.
    """

    tuning: Tuning
    item_seq: torch.Tensor
    item_start: torch.Tensor
    first_B: torch.Tensor
    count_B: torch.Tensor
    partial: torch.Tensor
    peaks: torch.Tensor
    sums: torch.Tensor
    merges: bool = True


def make_plan(batch: int, items: int, q_heads: int, head_dim: int, tuning: Tuning, device: str | torch.device) -> Plan:
    """An empty plan for at most `items` chunks."""

    def ints(count: int) -> torch.Tensor:
        return torch.full((count,), -1, dtype=torch.int32, device=device)

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    return Plan(
        tuning, ints(items), ints(items), ints(batch), ints(batch),
        floats(items, q_heads, head_dim), floats(items, q_heads), floats(items, q_heads),
    )  # fmt: skip


def items_of(lengths: list[int], chunk: int) -> int:
    """How many chunks these lengths take."""
    return sum(-(-n // chunk) for n in lengths)


def fill_plan(plan: Plan, lengths_B: torch.Tensor) -> None:
    """Deal the chunks out, on the device and without waiting for it: a step's lengths change, its buffers don't."""
    chunk = plan.tuning.chunk
    count_B = (lengths_B + chunk - 1) // chunk
    end_B = count_B.cumsum(0)
    item = torch.arange(plan.item_seq.shape[0], device=lengths_B.device)
    seq = torch.searchsorted(end_B, item, right=True)
    there = seq < lengths_B.shape[0]
    kept = seq.clamp(max=lengths_B.shape[0] - 1)
    plan.item_seq.copy_(torch.where(there, seq, -1))
    plan.item_start.copy_((item - (end_B - count_B)[kept]) * chunk)
    plan.first_B.copy_(end_B - count_B)
    plan.count_B.copy_(count_B)


def plan_for(q_BHD: torch.Tensor, k_NPHD: torch.Tensor, lengths_B: torch.Tensor) -> Plan:
    """The plan for these lengths with the tuning of the pool's dtype."""
    HEADS, D = q_BHD.shape[1:]
    return plan_for_lengths(lengths_B, HEADS, D, tuning_of(D, k_NPHD.element_size()))


def plan_for_lengths(lengths_B: torch.Tensor, q_heads: int, head_dim: int, tuning: Tuning) -> Plan:
    """A filled plan with exactly the chunks that these lengths take. Waits for the lengths: not for a graph."""
    lengths = lengths_B.tolist()
    items = max(1, items_of(lengths, tuning.chunk))
    plan = make_plan(len(lengths), items, q_heads, head_dim, tuning, lengths_B.device)
    plan.merges = not all(0 < n <= tuning.chunk for n in lengths)
    fill_plan(plan, lengths_B)
    return plan


@triton.jit
def _decode(
    q, k, v, table, lengths, item_seq, item_start, count, out, partial, peaks, sums, k_scale, v_scale, scale,
    stride_qb, stride_qh, stride_kn, stride_kp, stride_kh, stride_vn, stride_vp, stride_vh, stride_tb,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    seq = tl.load(item_seq + item)
    if seq < 0:
        return
    start = tl.load(item_start + item)
    end = tl.minimum(start + CHUNK, tl.load(lengths + seq).to(tl.int32))
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, D)
    head = kv_head * GROUP + row
    used = row < GROUP
    q_RD = tl.load(q + seq * stride_qb + head[:, None] * stride_qh + dim[None, :], mask=used[:, None], other=0.0)
    if SCALED:
        q_RD = q_RD.to(tl.float16)
        scale = scale * tl.load(k_scale + kv_head)
    peak_R = tl.full([ROWS], -1e30, tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    acc_RD = tl.zeros([ROWS, D], tl.float32)
    for first in tl.range(start, end, TILE, num_stages=STAGES):
        token = first + tl.arange(0, TILE)
        there = token < end
        page = tl.load(table + seq * stride_tb + token // PAGE, mask=there, other=0).to(tl.int64)
        slot = token % PAGE
        k_TD = tl.load(k + (page * stride_kn + slot * stride_kp + kv_head * stride_kh)[:, None] + dim[None, :])
        v_at = (page * stride_vn + slot * stride_vp + kv_head * stride_vh)[:, None] + dim[None, :]
        v_TD = tl.load(v + v_at, mask=there[:, None], other=0.0)
        if SCALED:
            k_TD = k_TD.to(tl.float16)
            v_TD = v_TD.to(tl.float16)
        scores_RT = tl.dot(q_RD, tl.trans(k_TD), input_precision="ieee") * scale
        scores_RT = tl.where(there[None, :], scores_RT, float("-inf"))
        new_R = tl.maximum(peak_R, tl.max(scores_RT, 1))
        shrink_R = tl.exp2(peak_R - new_R)
        p_RT = tl.exp2(scores_RT - new_R[:, None])
        sum_R = sum_R * shrink_R + tl.sum(p_RT, 1)
        acc_RD = acc_RD * shrink_R[:, None] + tl.dot(p_RT.to(v_TD.dtype), v_TD, input_precision="ieee")
        peak_R = new_R
    if SCALED:
        acc_RD = acc_RD * tl.load(v_scale + kv_head)
    if tl.load(count + seq) == 1:
        done = (acc_RD / sum_R[:, None]).to(out.dtype.element_ty)
        tl.store(out + (seq * HEADS + head)[:, None] * D + dim[None, :], done, mask=used[:, None])
    else:
        at = item * HEADS + head
        tl.store(partial + at[:, None] * D + dim[None, :], acc_RD, mask=used[:, None])
        tl.store(peaks + at, peak_R, mask=used)
        tl.store(sums + at, sum_R, mask=used)


@triton.jit
def _merge(first, count, out, partial, peaks, sums, HEADS: tl.constexpr, D: tl.constexpr):
    seq = tl.program_id(1)
    head = tl.program_id(0)
    items = tl.load(count + seq)
    if items == 1:
        return
    start = tl.load(first + seq)
    dim = tl.arange(0, D)
    peak = -1e30
    total = 0.0
    acc_D = tl.zeros([D], tl.float32)
    for item in range(start, start + items):
        at = item * HEADS + head
        this = tl.load(peaks + at)
        new = tl.maximum(peak, this)
        shrink = tl.exp2(peak - new)
        share = tl.exp2(this - new)
        total = total * shrink + tl.load(sums + at) * share
        acc_D = acc_D * shrink + tl.load(partial + at * D + dim) * share
        peak = new
    # an empty sequence attends to nothing: zeros
    acc_D = acc_D / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (seq * HEADS + head) * D + dim, acc_D.to(out.dtype.element_ty))


def paged_decode(
    q_BHD: torch.Tensor,
    k_NPHD: torch.Tensor,
    v_NPHD: torch.Tensor,
    table_BP: torch.Tensor,
    lengths_B: torch.Tensor,
    plan: Plan,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    out_BHD: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, QH, D) attention of one new token a sequence over its pages, in q's dtype; into out_BHD when it is given.

    Pools are (pages, page, KVH, D) in q's dtype, or float8_e4m3fn with `scales` (KVH,) float32 of k and v; any strides
    with a contiguous last dimension. NotImplementedError for a shape that the tiles can't take.
    """
    B, HEADS, D = q_BHD.shape
    page, kv_heads = k_NPHD.shape[1:3]
    group = HEADS // kv_heads
    if D & (D - 1) or not 16 <= D <= 256:
        raise NotImplementedError(f"head dimension {D}: the tiles take 16, 32, 64, 128 or 256")
    if HEADS % kv_heads or group > 64:
        raise NotImplementedError(f"{HEADS} query heads over {kv_heads} KV heads: a group of at most 64 whole heads")
    if (k_NPHD.dtype == torch.float8_e4m3fn) != (scales is not None):
        raise NotImplementedError(f"cache dtype {k_NPHD.dtype}: float8_e4m3fn needs scales, no other dtype has them")
    if scales is None and k_NPHD.dtype != q_BHD.dtype:
        raise NotImplementedError(f"cache dtype {k_NPHD.dtype} with q in {q_BHD.dtype}")
    if out_BHD is None:
        out_BHD = torch.empty_like(q_BHD)
    k_scale, v_scale = scales if scales is not None else (plan.sums, plan.sums)
    _decode[(kv_heads, plan.item_seq.shape[0])](
        q_BHD, k_NPHD, v_NPHD, table_BP, lengths_B, plan.item_seq, plan.item_start, plan.count_B, out_BHD,
        plan.partial, plan.peaks, plan.sums, k_scale, v_scale, D**-0.5 * LOG2_E,
        q_BHD.stride(0), q_BHD.stride(1), k_NPHD.stride(0), k_NPHD.stride(1), k_NPHD.stride(2),
        v_NPHD.stride(0), v_NPHD.stride(1), v_NPHD.stride(2), table_BP.stride(0),
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), HEADS=HEADS, D=D, PAGE=page,
        CHUNK=plan.tuning.chunk, TILE=plan.tuning.tile, SCALED=scales is not None, STAGES=plan.tuning.stages,
        num_warps=plan.tuning.warps,
    )  # fmt: skip
    if plan.merges:
        _merge[(HEADS, B)](plan.first_B, plan.count_B, out_BHD, plan.partial, plan.peaks, plan.sums, HEADS=HEADS, D=D)
    return out_BHD
