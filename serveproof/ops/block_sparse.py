"""Block-sparse attention forward of our own in Triton: FlashAttention-2's loop over the blocks that a mask keeps.

The mask is a matrix of blocks in CSR: row i of query blocks sees the key blocks indices[indptr[i]:indptr[i + 1]]. Tiles
of whole blocks come by the chip's tensor copy engine; blocks smaller than a tile are gathered, several to a tile.
Sources: arXiv 2307.08691; the block CSR is flashinfer's (arXiv 2501.01005).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tuning:
    """Query rows and keys a tile, warps, tiles in flight: found by trying on an H200 (docs/pairs)."""

    rows: int
    keys: int
    warps: int
    stages: int


def tuning_of(block: int) -> Tuning:
    """Large tiles where blocks fill them, small ones where not; a tile's rows are a power of two that divides a block.

    128 and 16 rows were tried on an H200; 64 rows there with blocks of 128 only, 32 rows not.
    """
    rows = min(block & -block, 128)
    return {128: Tuning(128, 64, 4, 3), 64: Tuning(64, 64, 4, 2)}.get(rows, Tuning(rows, 32, 1, 3))


@triton.jit
def _forward(
    q, k, v, k_desc, v_desc, out, indptr, indices, scale, stride_s,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = tile * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, D)
    block_row = tile * ROWS // BLOCK
    first = tl.load(indptr + block_row)
    keys = (tl.load(indptr + block_row + 1) - first) * BLOCK
    at_RD = row[:, None].to(tl.int64) * stride_s + head * D + dim[None, :]
    q_RD = tl.load(q + at_RD)
    peak_R = tl.full([ROWS], -1e30, tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    acc_RD = tl.zeros([ROWS, D], tl.float32)
    for start in tl.range(0, keys, KEYS, num_stages=STAGES):
        if COPY_ENGINE:
            key = tl.load(indices + first + start // BLOCK) * BLOCK + start % BLOCK
            k_KD = k_desc.load([key, head * D])
            v_KD = v_desc.load([key, head * D])
            scores_RK = tl.dot(q_RD, tl.trans(k_KD), input_precision="ieee") * scale
        else:
            number = start + tl.arange(0, KEYS)
            there = number < keys
            block_column = tl.load(indices + first + number // BLOCK, mask=there, other=0)
            key = (block_column * BLOCK + number % BLOCK).to(tl.int64)
            at_KD = key[:, None] * stride_s + head * D + dim[None, :]
            k_KD = tl.load(k + at_KD)
            v_KD = tl.load(v + at_KD, mask=there[:, None], other=0.0)
            scores_RK = tl.dot(q_RD, tl.trans(k_KD), input_precision="ieee") * scale
            scores_RK = tl.where(there[None, :], scores_RK, float("-inf"))
        new_R = tl.maximum(peak_R, tl.max(scores_RK, 1))
        shrink_R = tl.exp2(peak_R - new_R)
        p_RK = tl.exp2(scores_RK - new_R[:, None])
        sum_R = sum_R * shrink_R + tl.sum(p_RK, 1)
        acc_RD = tl.dot(p_RK.to(v_KD.dtype), v_KD, acc_RD * shrink_R[:, None], input_precision="ieee")
        peak_R = new_R
    # a row that sees no block attends to nothing: zeros
    acc_RD = acc_RD / tl.where(sum_R == 0.0, 1.0, sum_R)[:, None]
    tl.store(out + at_RD, acc_RD.to(out.dtype.element_ty))


def block_sparse_attention(
    q_SHD: torch.Tensor,
    k_SHD: torch.Tensor,
    v_SHD: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    block: int,
    tuning: Tuning | None = None,
) -> torch.Tensor:
    """(S, H, D) attention of q over the blocks of `block` keys that the int32 CSR keeps; all contiguous, one dtype.

    NotImplementedError for a shape that the tiles can't take.
    """
    S, H, D = q_SHD.shape
    if block % 16:
        raise NotImplementedError(f"blocks of {block}: a multiple of 16")
    if D & (D - 1) or not 16 <= D <= 256:
        raise NotImplementedError(f"head dimension {D}: the tiles take 16, 32, 64, 128 or 256")
    if S % block:
        raise NotImplementedError(f"{S} tokens are not whole blocks of {block}")
    chosen = tuning or tuning_of(block)
    copy_engine = block % chosen.keys == 0 and q_SHD.is_cuda and torch.cuda.get_device_capability()[0] >= 9
    out_SHD = torch.empty_like(q_SHD)
    sources = [t.view(S, H * D) for t in (k_SHD, v_SHD)]
    tiles = [TensorDescriptor.from_tensor(t, [chosen.keys, D]) if copy_engine else t for t in sources]
    try:
        _forward[(S // chosen.rows, H)](
            q_SHD, k_SHD, v_SHD, *tiles, out_SHD, indptr, indices, D**-0.5 * LOG2_E, q_SHD.stride(0),
            BLOCK=block, ROWS=chosen.rows, KEYS=chosen.keys, D=D, STAGES=chosen.stages, COPY_ENGINE=copy_engine,
            num_warps=chosen.warps,
        )  # fmt: skip
    except OutOfResources as error:  # no RuntimeError: it would end the case instead of this candidate
        raise NotImplementedError(f"tiles of {q_SHD.dtype} at head dimension {D} don't fit: {error}") from None
    return out_SHD
