"""Attention of one new token a row over a flat KV cache, in one launch: a Triton kernel for a decode step.

Flash-decoding (Dao et al., 'Flash-Decoding for long-context inference', PyTorch blog, 2023-10): the tokens of a row are
split over programs, for a few rows can't fill the chip. The last program of a row and head to arrive, by an atomic
counter that it sets back to zero, merges the parts; so one launch does both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from serveproof.ops.gemv import prefetch_l2, prefetch_plan

GROUP_PAD = 16  # query heads of a group, padded to a tensor-core tile


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, part_ptr, stats_ptr, counter_ptr, prefetch_ptr, context, scale_log2,
    ROWS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G_PAD: tl.constexpr, D: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, PREFETCH: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """out (ROWS, KV_HEADS * GROUP, D) of q over slots row * context to row * context + lengths[row], that one included.

    part (rows * kv heads, SPLITS, G_PAD, D) and stats (rows * kv heads, SPLITS, 2, G_PAD): float32, unnormalised sums,
    maxima and denominators in base 2.
    """
    program = tl.program_id(0)
    if program >= ROWS * KV_HEADS * SPLITS:
        if PREFETCH > 0:
            prefetch_l2(prefetch_ptr, program - ROWS * KV_HEADS * SPLITS, LANES, CHUNK)
    else:
        pair = program // SPLITS
        split = program % SPLITS
        row = pair // KV_HEADS
        head = pair % KV_HEADS
        g_G = tl.arange(0, G_PAD)
        d_D = tl.arange(0, D)
        s_S = tl.arange(0, BLOCK_S)
        tokens = tl.load(lengths_ptr + row).to(tl.int32) + 1
        share = tl.cdiv(tl.cdiv(tokens, SPLITS), BLOCK_S) * BLOCK_S
        start = split * share
        end = tl.minimum(start + share, tokens)
        q_ptrs = q_ptr + ((row * KV_HEADS + head) * GROUP + g_G[:, None]) * D + d_D[None, :]
        q_GD = tl.load(q_ptrs, mask=g_G[:, None] < GROUP, other=0.0)
        top_G = tl.full([G_PAD], float("-inf"), tl.float32)
        total_G = tl.zeros([G_PAD], tl.float32)
        sum_GD = tl.zeros([G_PAD, D], tl.float32)
        for s in tl.range(start, end, BLOCK_S):
            at_S = s + s_S
            slot_S = (row * context + at_S).to(tl.int64) * KV_HEADS + head
            k_DS = tl.load(k_ptr + slot_S[None, :] * D + d_D[:, None], mask=at_S[None, :] < end, other=0.0)
            v_SD = tl.load(v_ptr + slot_S[:, None] * D + d_D[None, :], mask=at_S[:, None] < end, other=0.0)
            scores_GS = tl.dot(q_GD, k_DS, input_precision="ieee") * scale_log2
            scores_GS = tl.where(at_S[None, :] < end, scores_GS, float("-inf"))
            new_G = tl.maximum(top_G, tl.max(scores_GS, axis=1))
            weight_GS = tl.exp2(scores_GS - new_G[:, None])
            shrink_G = tl.exp2(top_G - new_G)
            total_G = total_G * shrink_G + tl.sum(weight_GS, axis=1)
            sum_GD = sum_GD * shrink_G[:, None]
            sum_GD = tl.dot(weight_GS.to(v_SD.dtype), v_SD, sum_GD, input_precision="ieee")
            top_G = new_G
        out_ptrs = out_ptr + ((row * KV_HEADS + head) * GROUP + g_G[:, None]) * D + d_D[None, :]
        out_mask = (g_G[:, None] < GROUP) & (d_D[None, :] >= 0)
        if SPLITS == 1:
            tl.store(out_ptrs, (sum_GD / total_G[:, None]).to(out_ptr.dtype.element_ty), mask=out_mask)
        else:
            tile = g_G[:, None] * D + d_D[None, :]
            tl.store(part_ptr + program * G_PAD * D + tile, sum_GD)
            tl.store(stats_ptr + program * 2 * G_PAD + g_G, top_G)
            tl.store(stats_ptr + program * 2 * G_PAD + G_PAD + g_G, total_G)
            tl.debug_barrier()  # all the program's stores come before its one atomic, which releases them
            arrived = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == SPLITS - 1:
                best_G = tl.full([G_PAD], float("-inf"), tl.float32)
                for other in tl.static_range(SPLITS):
                    stats = stats_ptr + (pair * SPLITS + other) * 2 * G_PAD + g_G
                    best_G = tl.maximum(best_G, tl.load(stats, cache_modifier=".cg"))
                all_GD = tl.zeros([G_PAD, D], tl.float32)
                all_G = tl.zeros([G_PAD], tl.float32)
                for other in tl.static_range(SPLITS):
                    stats = stats_ptr + (pair * SPLITS + other) * 2 * G_PAD + g_G
                    factor_G = tl.exp2(tl.load(stats, cache_modifier=".cg") - best_G)
                    all_G += factor_G * tl.load(stats + G_PAD, cache_modifier=".cg")
                    part = part_ptr + (pair * SPLITS + other) * G_PAD * D + tile
                    all_GD += factor_G[:, None] * tl.load(part, cache_modifier=".cg")
                tl.store(out_ptrs, (all_GD / all_G[:, None]).to(out_ptr.dtype.element_ty), mask=out_mask)
                tl.store(counter_ptr + pair, 0)


def prepare(
    q_BHD: Tensor, k_LNKD: Tensor, v_LNKD: Tensor, lengths_B: Tensor, context: int, out_BHD: Tensor, splits: int,
    block_s: int, warps: int, stages: int, prefetch_L: Tensor | None, prefetch_bytes: int,
) -> list[Callable[[int], None]]:  # fmt: skip
    """Per layer a call(stream) that launches the kernel on that CUDA stream; the first layer's first launch compiles.

    A launch through Triton's front end takes the host longer than the kernel takes the GPU. The compiled kernel is
    the same for every layer (one alignment, one set of constants), so later launches hand it its arguments directly,
    pointers as integers. The tensors must outlive the calls; each call holds its own.
    """
    rows, heads, depth = q_BHD.shape
    layers, _, kv_heads, _ = k_LNKD.shape
    pairs = rows * kv_heads
    part = q_BHD.new_empty((pairs * splits, GROUP_PAD, depth), dtype=torch.float32)
    stats = q_BHD.new_empty((pairs * splits, 2, GROUP_PAD), dtype=torch.float32)
    counter = torch.zeros(pairs, dtype=torch.int32, device=q_BHD.device)
    ahead = None if prefetch_L is None else prefetch_L[0]
    programs, lanes, chunk = prefetch_plan(ahead, prefetch_bytes, warps)
    grid = (pairs * splits + programs, 1, 1)
    constants = (rows, kv_heads, heads // kv_heads, GROUP_PAD, depth, splits, block_s, programs, lanes, chunk)
    scale_log2 = depth**-0.5 * 1.4426950408889634

    def tensors(layer: int) -> tuple[Tensor, ...]:
        behind = q_BHD if prefetch_L is None else prefetch_L[layer]
        return q_BHD, k_LNKD[layer], v_LNKD[layer], lengths_B, out_BHD, part, stats, counter, behind

    def launch(layer: int) -> object:
        return attention_kernel[grid](
            *tensors(layer), context, scale_log2, *constants, num_warps=warps, num_stages=stages
        )

    if not q_BHD.is_cuda:  # the interpreter: nothing is compiled
        return [lambda _stream, layer=layer: launch(layer) for layer in range(layers)]  # type: ignore[misc]
    compiled = launch(0)
    runner = compiled[grid]  # type: ignore[index]

    def direct(layer: int) -> Callable[[int], None]:
        held = tensors(layer)
        arguments = (*(tensor.data_ptr() for tensor in held), context, scale_log2, *constants)

        def call(stream: int) -> None:
            runner(*arguments, stream=stream)

        call.held = held  # type: ignore[attr-defined]  # the addresses must stay theirs
        return call

    return [direct(layer) for layer in range(layers)]
