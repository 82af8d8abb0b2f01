"""Attention over the paged cache: a step is planned once for all layers, then each layer writes its keys and reads.

Rows of a step: first one a decoding sequence, then the pieces of prompts. On CUDA decodes run by the split-KV kernel of
the pair paged_attention (serveproof.ops.paged_decode: what is served is what is measured), elsewhere by one SDPA over
pages gathered and padded to the longest. Pieces of prompts run by flashinfer where it serves (engine.prefill), else by
SDPA, each over its own pages, and not by cuDNN's: that builds a plan for every length it has not met, about 55 ms on
an H100, and prompts rarely have each other's lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from serveproof.engine import prefill
from serveproof.engine.kv_cache import KVCache
from serveproof.nvtx_ranges import ranged

PIECE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class Piece:
    """Rows [first, first + count) of a step: tokens of one sequence that see `context` tokens at the last of them."""

    first: int
    count: int
    context: int
    pages_M: Tensor


@dataclass
class StepTensors:
    """A step on the device. N rows, the first B of them single tokens: decodes, and the drafts behind each.

    tokens_N, positions_N, slots_N (where keys and values go) int64; lengths_B int64 with the new token counted;
    table_BP int32 block table of the single tokens; pieces of prompts, whose block tables follow one another in
    piece_pages_M, int32.
    """

    tokens_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    lengths_B: Tensor
    table_BP: Tensor
    pieces: list[Piece] = field(default_factory=list)
    piece_pages_M: Tensor | None = None


class PagedAttention:
    """Set up once a step by `plan`, then called by each layer."""

    def __init__(self, cache: KVCache, heads: int) -> None:
        self.cache, self.heads = cache, heads
        self.prefill = prefill.PagedPrefill(cache, heads) if prefill.available(cache) else None
        self.step: StepTensors
        self.decode_plan: Any = None
        self.pages_BP: Tensor
        self.mask_B11S: Tensor

    def plan(self, step: StepTensors, decode_plan: Any = None) -> None:
        """Prepare for the layers of a step. decode_plan: its `empty_plan`, kept between steps, as a CUDA graph does."""
        self.step = step
        if step.pieces and self.prefill is not None:
            counts, contexts = [piece.count for piece in step.pieces], [piece.context for piece in step.pieces]
            assert step.piece_pages_M is not None  # noqa: S101 (told to mypy)
            self.prefill.plan(counts, contexts, step.piece_pages_M)
        if not len(step.lengths_B):
            return
        if step.tokens_N.is_cuda:
            from serveproof.ops import paged_plan

            self.decode_plan = self.empty_plan(len(step.lengths_B)) if decode_plan is None else decode_plan
            paged_plan.fill_plan(self.decode_plan, step.lengths_B)
            return
        longest = int(step.lengths_B.max())
        pages = -(-longest // self.cache.page_size)
        self.pages_BP = step.table_BP[:, :pages].long()
        seen_BS = torch.arange(pages * self.cache.page_size)[None] < step.lengths_B[:, None]
        self.mask_B11S = seen_BS[:, None, None]

    def empty_plan(self, batch: int) -> Any:
        """A plan of the split-KV kernel for `batch` sequences of any lengths."""
        from serveproof.ops import paged_plan

        pool_NPHD = self.cache.pool[0, 0]
        q_BHE = torch.empty(batch, self.heads, pool_NPHD.shape[-1], device=pool_NPHD.device)
        return paged_plan.make_plan(q_BHE, pool_NPHD, most_parts(batch))

    def __call__(self, layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        self.cache.write(layer, self.step.slots_N, k_NKE, v_NKE)
        return self.read(layer, q_NHE)

    @partial(ranged, "attention")
    def read(self, layer: int, q_NHE: Tensor, out_NHE: Tensor | None = None) -> Tensor:
        """Attention of every row over what the cache holds, its own token with it; into `out` where that is given."""
        step = self.step
        decodes = len(step.lengths_B)
        if out_NHE is None:
            if decodes == len(q_NHE):
                return self.decode(layer, q_NHE)
            if self.prefill is not None and not decodes:
                return self.prefill(layer, q_NHE.contiguous())
            out_NHE = torch.empty_like(q_NHE)
        if decodes:
            out_NHE[:decodes] = self.decode(layer, q_NHE[:decodes])
        if self.prefill is not None:
            if step.pieces:
                self.prefill(layer, q_NHE[decodes:].contiguous(), out_NHE[decodes:])
            return out_NHE
        with sdpa_kernel(PIECE_BACKENDS):
            for piece in step.pieces:
                rows = slice(piece.first, piece.first + piece.count)
                out_NHE[rows] = self.piece(layer, q_NHE[rows], piece)
        return out_NHE

    def decode(self, layer: int, q_BHE: Tensor) -> Tensor:
        """One token a sequence over all its pages."""
        if q_BHE.is_cuda:
            from serveproof.ops import paged_decode

            own = self.cache.scales_of(layer)
            k_NPHD, v_NPHD = self.cache.pool[layer]
            return paged_decode.paged_decode(q_BHE, k_NPHD, v_NPHD, self.step.table_BP, self.decode_plan, own)
        batch, kv_heads = len(q_BHE), self.cache.pool.shape[4]
        k_BSKE, v_BSKE = (
            x.view(batch, -1, kv_heads, q_BHE.shape[-1])
            for x in self.cache.read(layer, self.pages_BP.flatten(), q_BHE.dtype)
        )
        # the query heads that share a KV head stand as its rows: keys are not repeated for GQA
        q_BKGE = q_BHE.unflatten(1, (kv_heads, -1))
        out_BKGE = F.scaled_dot_product_attention(
            q_BKGE, k_BSKE.transpose(1, 2), v_BSKE.transpose(1, 2), attn_mask=self.mask_B11S
        )
        return out_BKGE.flatten(1, 2)

    def piece(self, layer: int, q_LHE: Tensor, piece: Piece) -> Tensor:
        """Tokens of one sequence over its pages, causal: the last token sees all of the context."""
        k_SKE, v_SKE = (x.flatten(0, 1)[: piece.context] for x in self.cache.read(layer, piece.pages_M, q_LHE.dtype))
        q_1HLE, k_1KSE, v_1KSE = (x.transpose(0, 1)[None] for x in (q_LHE, k_SKE, v_SKE))
        whole = piece.count == piece.context
        mask: Any = None
        if not whole and piece.count > 1:
            if q_LHE.is_cuda:
                # which flash attention knows; its module brings torch's compiler with it, a second and a half to import
                from torch.nn.attention.bias import causal_lower_right

                mask = causal_lower_right(piece.count, piece.context)
            else:
                mask = torch.ones(piece.count, piece.context, dtype=torch.bool).tril(piece.context - piece.count)
        out_1HLE = F.scaled_dot_product_attention(
            q_1HLE, k_1KSE, v_1KSE, attn_mask=mask, is_causal=whole, enable_gqa=q_LHE.shape[1] != k_SKE.shape[1]
        )
        return out_1HLE[0].transpose(0, 1)


def most_parts(batch: int) -> int:
    """Into how many parts the split-KV kernel may cut a batch: enough to fill a GPU with few sequences."""
    return 2 * batch + 64
