"""A decode step as one CUDA graph per batch bucket: planning attention, all layers, the LM head and the argmax.

A draft is a row like its sequence's own token, one longer: all keys of a layer are written before any row reads.
Lengths, block tables and tokens are read from buffers that stay where they are; a step of fewer sequences than its
bucket is padded with rows that write into block 0 and attend to nothing. All graphs share one memory pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from serveproof.engine import sampler
from serveproof.engine.attention import StepTensors
from serveproof.engine.sequence import Chunk
from serveproof.ops.piece_capture import Captured, capture

if TYPE_CHECKING:
    from serveproof.engine.model_runner import BlockTables, ModelRunner

# rows of the numbers that a step sends to the device
TOKENS, POSITIONS, PLACES, SLOTS, LENGTHS = range(5)


@dataclass
class DecodeGraphs:
    """Graphs by bucket with what capturing them took, and the buffers that they read and write."""

    numbers_5B: Tensor
    table_BP: Tensor
    null_slot: int
    page_size: int
    buckets: list[int]
    captured: Captured
    outputs: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]]

    @property
    def largest(self) -> int:
        """The largest batch that a graph takes."""
        return self.buckets[-1]

    def replay(self, chunks: tuple[Chunk, ...], tables: BlockTables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One decode step: (logits [B, V], tokens, finite, the tokens fed), valid until the next replay. A row a chunk
        and one for each of its drafts."""
        batch = sum(map(rows_of, chunks))
        bucket = next(size for size in self.buckets if size >= batch)
        numbers, table = host_step(chunks, tables, bucket, self.page_size, self.null_slot)
        self.numbers_5B[:, :bucket].copy_(torch.from_numpy(numbers).pin_memory(), non_blocking=True)
        self.table_BP[:bucket].copy_(torch.from_numpy(table).pin_memory(), non_blocking=True)
        self.captured.graphs[bucket][0].replay()
        logits_BV, tokens_B, finite_B, fed_B = self.outputs[bucket]
        return logits_BV[:batch], tokens_B[:batch], finite_B[:batch], fed_B[:batch]


def rows_of(chunk: Chunk) -> int:
    """Rows of a chunk: its tokens, and its drafts."""
    return chunk.length + len(chunk.drafts)


def host_step(
    chunks: tuple[Chunk, ...], tables: BlockTables, bucket: int, page_size: int, null_slot: int
) -> tuple[Any, Any]:
    """(int64 [5, bucket] of tokens, positions, places, slots and lengths; int32 block tables [bucket, P]), padded."""
    for chunk in chunks:
        tables.update(chunk.sequence)
    counts = [rows_of(chunk) for chunk in chunks]
    slots = np.repeat([chunk.sequence.slot for chunk in chunks], counts)
    starts = np.array([at for chunk in chunks for at in range(chunk.start, chunk.start + rows_of(chunk))])
    batch = len(starts)
    numbers = np.zeros((5, bucket), dtype=np.int64)
    numbers[SLOTS] = null_slot
    table = np.zeros((bucket, tables.rows.shape[1]), dtype=np.int32)
    table[:batch] = tables.rows[slots]
    numbers[TOKENS, :batch] = [
        token for chunk in chunks for token in (chunk.sequence.tokens[chunk.start], *chunk.drafts)
    ]
    numbers[POSITIONS, :batch] = starts
    numbers[PLACES, :batch] = table[np.arange(batch), starts // page_size] * page_size + starts % page_size
    # a draft's own choice is not its sequence's last token
    first = np.cumsum([0, *counts[:-1]])
    numbers[SLOTS, first] = slots[first]
    numbers[LENGTHS, :batch] = starts + 1
    return numbers, table


def buckets_up_to(most: int) -> list[int]:
    """1, 2, 4, 8, then every 8th up to 64, every 16th up to 128, every 32nd: padding costs at most an eighth or so."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, most + 32, 32)]
    return [size for size in sizes if size < most] + [most]


@torch.inference_mode()
def capture_decodes(runner: ModelRunner, most: int, say: Callable[[str], object] = lambda _: None) -> DecodeGraphs:
    """Capture a graph per bucket up to `most`."""
    device = runner.device
    null_slot = len(runner.last) - 1
    numbers_5B = torch.zeros(5, most, dtype=torch.int64, device=device)
    numbers_5B[SLOTS] = null_slot
    table_BP = torch.zeros(most, runner.tables.rows.shape[1], dtype=torch.int32, device=device)
    outputs: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def pieces_of(bucket: int) -> list[Callable[[], None]]:
        say(f"capturing a decode graph for {bucket} sequences")
        step = bucket_step(runner, numbers_5B[:, :bucket], table_BP[:bucket])

        def piece() -> None:
            outputs[bucket] = step()

        return [piece]

    buckets = buckets_up_to(most)
    captured = capture(pieces_of, buckets)
    return DecodeGraphs(numbers_5B, table_BP, null_slot, runner.cache.page_size, buckets, captured, outputs)


def bucket_step(
    runner: ModelRunner, numbers_5B: Tensor, table_BP: Tensor
) -> Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A closure that runs a bucket's decode step on the graphs' buffers."""
    plan = runner.attention.empty_plan(len(table_BP))

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens_B, positions_B, places_B, slots_B, lengths_B = numbers_5B.unbind()
        fed_B = torch.where(tokens_B < 0, runner.last[slots_B], tokens_B)
        runner.attention.plan(StepTensors(fed_B, positions_B, places_B, lengths_B, table_BP), plan)
        logits_BV = runner.model.logits(runner.forward(fed_B, positions_B))
        chosen_B, finite_B = sampler.greedy(logits_BV)
        runner.last[slots_B] = chosen_B
        return logits_BV, chosen_B, finite_B, fed_B

    return run
