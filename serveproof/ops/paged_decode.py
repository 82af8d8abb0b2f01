"""Paged decode attention of our own in Triton: split over the keys, GQA packed into one tensor-core tile, one launch.

A decode step reads every key and value once and computes little: the only limit is memory bandwidth. The keys of a
sequence are cut into parts (paged_plan.py); a program handles one part of one KV head for all query heads that share
it, so keys are read once, with several tiles in flight. Partial results are merged by their log-sum-exp: Flash-Decoding
(Dao et al., 2023, pytorch.org/blog/flash-decoding); block tables: PagedAttention, arXiv 2309.06180. The last program of
a sequence and KV head to arrive, by an atomic counter that it sets back to zero, merges, so no second kernel is
launched.

A float8 (e4m3) cache has a scale a KV head. e4m3 widens to float16 exactly, so the products are float16's there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from serveproof.ops.paged_plan import Plan

LOG2_E = 1.4426950408889634
COMPUTE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _widen_pairs(pairs_TE, COMPUTE: tl.constexpr, ASSEMBLER: tl.constexpr):
    """(T, D / 2) pairs of e4m3, as int16 -> their low and high halves widened, (T, D / 2) each.

    The weighted sum over tokens wants two tokens of one dimension in a register. 16-bit pairs come from shared memory
    transposed (ldmatrix), single bytes would be loaded one at a time: half of the loop's instructions. The assembler
    then takes three instructions for four numbers, on two tokens at a time.
    """
    if ASSEMBLER:
        low_TE, high_TE = tl.inline_asm_elementwise(
            "{ .reg .b32 t; .reg .b16 a, b; prmt.b32 t, $2, $2, 0x3120; mov.b32 {a, b}, t; "
            "cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r", [pairs_TE], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        low_TE = pairs_TE.to(tl.int8).to(tl.float8e4nv, bitcast=True)
        high_TE = (pairs_TE >> 8).to(tl.int8).to(tl.float8e4nv, bitcast=True)
    return low_TE.to(COMPUTE), high_TE.to(COMPUTE)


@triton.jit
def _decode(
    q, k, v, table, items, counters, out, partial, peaks, sums, k_scale, v_scale, scale, most,
    stride_qb, stride_qh, stride_n, stride_p, stride_h, stride_tb,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr, SCALED: tl.constexpr, COMPUTE: tl.constexpr, OFFSET: tl.constexpr,
    FLIP: tl.constexpr, ASSEMBLER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    seq = tl.load(items + item)
    start = tl.load(items + most + item)
    end = tl.load(items + 2 * most + item)
    part = tl.load(items + 3 * most + item)
    first_part = tl.load(items + 4 * most + item)
    count = tl.load(items + 5 * most + item)
    if seq < 0:
        return
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, D)
    lane = tl.arange(0, TILE)
    head = kv_head * GROUP + row
    used = row < GROUP
    pages = table + seq * stride_tb
    k += kv_head * stride_h
    v += kv_head * stride_h
    # The next tile's pages are loaded a tile ahead: keys and values then wait for no other load, and all stages are
    # in flight. (Triton spreads the stages over a chain of loads; with the pages in it half of them are lost.)
    page = tl.load(pages + (start + lane) // PAGE, mask=start + lane < end, other=0)
    q_RD = tl.load(q + seq * stride_qb + head[:, None] * stride_qh + dim[None, :], mask=used[:, None], other=0.0)
    q_RD = q_RD.to(COMPUTE)
    q_DR = tl.trans(q_RD)
    if SCALED:
        scale = scale * tl.load(k_scale + kv_head)
    peak_R = tl.full([ROWS], -1e30, tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    if SCALED:
        v_pairs = v.to(tl.pointer_type(tl.int16))
        pair = tl.arange(0, D // 2)
        low_RE = tl.zeros([ROWS, D // 2], tl.float32)
        high_RE = tl.zeros([ROWS, D // 2], tl.float32)
    else:
        acc = tl.zeros([D, ROWS] if FLIP else [ROWS, D], tl.float32)
    for first in tl.range(start, end, TILE, num_stages=STAGES):
        token = first + lane
        there = token < end
        # a part starts at a tile: a token's slot is the same in every tile of whole pages
        slot = lane % PAGE if TILE % PAGE == 0 else token % PAGE
        at_T = page.to(OFFSET) * stride_n + slot * stride_p
        k_TD = tl.load(k + at_T[:, None] + dim[None, :]).to(COMPUTE)
        # unused ends of pages hold anything, and zero times NaN is NaN
        if SCALED:
            v_TE = tl.load(v_pairs + at_T[:, None] // 2 + pair[None, :], mask=there[:, None], other=0)
        else:
            v_TD = tl.load(v + at_T[:, None] + dim[None, :], mask=there[:, None], other=0.0)
        page = tl.load(pages + (token + TILE) // PAGE, mask=token + TILE < end, other=0)
        if FLIP:
            scores_TR = tl.dot(k_TD, q_DR, input_precision="ieee") * scale
            scores_TR = tl.where(there[:, None], scores_TR, float("-inf"))
            new_R = tl.maximum(peak_R, tl.max(scores_TR, 0))
            p_TR = tl.exp2(scores_TR - new_R[None, :])
            shrink_R = tl.exp2(peak_R - new_R)
            sum_R = sum_R * shrink_R + tl.sum(p_TR, 0)
            acc = tl.dot(tl.trans(v_TD), p_TR.to(COMPUTE), acc * shrink_R[None, :], input_precision="ieee")
        else:
            scores_RT = tl.dot(q_RD, tl.trans(k_TD), input_precision="ieee") * scale
            scores_RT = tl.where(there[None, :], scores_RT, float("-inf"))
            new_R = tl.maximum(peak_R, tl.max(scores_RT, 1))
            p_RT = tl.exp2(scores_RT - new_R[:, None])
            shrink_R = tl.exp2(peak_R - new_R)
            sum_R = sum_R * shrink_R + tl.sum(p_RT, 1)
            p_RT = p_RT.to(COMPUTE)
            if SCALED:
                low_TE, high_TE = _widen_pairs(v_TE, COMPUTE, ASSEMBLER)
                low_RE = tl.dot(p_RT, low_TE, low_RE * shrink_R[:, None], input_precision="ieee")
                high_RE = tl.dot(p_RT, high_TE, high_RE * shrink_R[:, None], input_precision="ieee")
            else:
                acc = tl.dot(p_RT, v_TD, acc * shrink_R[:, None], input_precision="ieee")
        peak_R = new_R
    if SCALED:
        acc = tl.interleave(low_RE, high_RE) * tl.load(v_scale + kv_head)
    acc_RD = tl.trans(acc) if FLIP else acc
    out_at = (seq * HEADS + head)[:, None] * D + dim[None, :]
    if count == 1:
        _store(out + out_at, acc_RD, sum_R, used)
    else:
        at_R = part * HEADS + head
        tl.store(partial + at_R[:, None] * D + dim[None, :], acc_RD, mask=used[:, None])
        tl.store(peaks + at_R, peak_R, mask=used)
        tl.store(sums + at_R, sum_R, mask=used)
        tl.debug_barrier()  # all the program's stores come before its one atomic, which releases them
        counter = counters + seq * HEADS + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1:
            tl.store(counter, 0)
            _merge(out + out_at, partial, peaks, sums, first_part, count, head, used, dim, ROWS, HEADS, D)


@triton.jit
def _store(out_ptrs, acc_RD, sum_R, used):
    # an empty sequence attends to nothing: zeros
    done_RD = acc_RD / tl.where(sum_R == 0.0, 1.0, sum_R)[:, None]
    tl.store(out_ptrs, done_RD.to(out_ptrs.dtype.element_ty), mask=used[:, None])


@triton.jit
def _merge(
    out_ptrs, partial, peaks, sums, first, count, head, used, dim,
    ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    # .cg: other multiprocessors wrote these, and the first-level cache is each one's own
    peak_R = tl.full([ROWS], -1e30, tl.float32)
    for slot in tl.range(first, first + count, num_stages=1):
        this_R = tl.load(peaks + slot * HEADS + head, mask=used, other=-1e30, cache_modifier=".cg")
        peak_R = tl.maximum(peak_R, this_R)
    sum_R = tl.zeros([ROWS], tl.float32)
    acc_RD = tl.zeros([ROWS, D], tl.float32)
    for slot in tl.range(first, first + count, num_stages=1):
        at_R = slot * HEADS + head
        this_R = tl.load(peaks + at_R, mask=used, other=-1e30, cache_modifier=".cg")
        share_R = tl.exp2(this_R - peak_R)
        sum_R += share_R * tl.load(sums + at_R, mask=used, other=0.0, cache_modifier=".cg")
        part_RD = tl.load(
            partial + at_R[:, None] * D + dim[None, :], mask=used[:, None], other=0.0, cache_modifier=".cg"
        )
        acc_RD += share_R[:, None] * part_RD
    _store(out_ptrs, acc_RD, sum_R, used)


def paged_decode(
    q_BHD: torch.Tensor,
    k_NPHD: torch.Tensor,
    v_NPHD: torch.Tensor,
    table_BP: torch.Tensor,
    plan: Plan,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    out_BHD: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, QH, D) attention of one new token a sequence over its pages, in q's dtype; into out_BHD when it is given.

    The lengths are those that the plan was filled with. Pools are (pages, page, KVH, D) in q's dtype, or float8_e4m3fn
    with `scales` (KVH,) float32 of k and v; any strides with a contiguous last dimension, so a pool that lies as
    (pages, KVH, page, D) is passed transposed. NotImplementedError for a shape that the tiles can't take.
    """
    HEADS, D = q_BHD.shape[1:]
    page, kv_heads = k_NPHD.shape[1:3]
    group, tuning = HEADS // kv_heads, plan.tuning
    if D & (D - 1) or not 16 <= D <= 256:
        raise NotImplementedError(f"head dimension {D}: the tiles take 16, 32, 64, 128 or 256")
    if HEADS % kv_heads or group > 64:
        raise NotImplementedError(f"{HEADS} query heads over {kv_heads} KV heads: a group of at most 64 whole heads")
    if k_NPHD.stride(3) != 1 or q_BHD.stride(2) != 1:
        raise NotImplementedError("the head dimension of q and of the pools must be contiguous")
    if k_NPHD.shape != v_NPHD.shape or k_NPHD.stride() != v_NPHD.stride():
        raise NotImplementedError("the pools of keys and values must lie alike")
    if (k_NPHD.dtype == torch.float8_e4m3fn) != (scales is not None):
        raise NotImplementedError(f"cache dtype {k_NPHD.dtype}: float8_e4m3fn needs scales, no other dtype has them")
    if scales is not None and (D < 32 or tuning.flip or any(step % 2 for step in k_NPHD.stride()[:3])):
        raise NotImplementedError("a float8 cache takes head dimensions from 32, even strides and no flipped tiles")
    if scales is None and k_NPHD.dtype != q_BHD.dtype:
        raise NotImplementedError(f"cache dtype {k_NPHD.dtype} with q in {q_BHD.dtype}")
    if out_BHD is None:
        out_BHD = torch.empty(q_BHD.shape, dtype=q_BHD.dtype, device=q_BHD.device)
    elif not out_BHD.is_contiguous():
        raise NotImplementedError("out must be contiguous")
    compute = q_BHD.dtype if scales is None or q_BHD.dtype == torch.float32 else torch.float16
    k_scale, v_scale = scales if scales is not None else (plan.sums, plan.sums)
    most = plan.items.shape[1]
    _decode[(kv_heads, most)](
        q_BHD, k_NPHD, v_NPHD, table_BP, plan.items, plan.counters, out_BHD, plan.partial, plan.peaks, plan.sums,
        k_scale, v_scale, D**-0.5 * LOG2_E, most,
        q_BHD.stride(0), q_BHD.stride(1), *k_NPHD.stride()[:3], table_BP.stride(0),
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), HEADS=HEADS, D=D, PAGE=page,
        TILE=tuning.tile, SCALED=scales is not None, COMPUTE=COMPUTE[compute],
        OFFSET=tl.int32 if k_NPHD.stride(0) * k_NPHD.shape[0] < 2**31 else tl.int64,
        FLIP=tuning.flip, ASSEMBLER=scales is not None and q_BHD.is_cuda and compute == torch.float16,
        STAGES=tuning.stages, num_warps=tuning.warps,
    )  # fmt: skip
    return out_BHD
