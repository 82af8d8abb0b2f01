"""A decode step as one CUDA graph per batch bucket: planning attention, all layers, the LM head and the argmax.

Lengths, block tables and tokens are read from buffers that stay where they are; a step of fewer sequences than its
bucket is padded with rows that write into block 0 and attend to nothing. All graphs share one memory pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from serveproof.engine import sampler
from serveproof.engine.attention import StepTensors, most_parts
from serveproof.engine.sequence import Chunk

if TYPE_CHECKING:
    from serveproof.engine.model_runner import BlockTables, ModelRunner

# rows of the numbers that a step sends to the device
TOKENS, POSITIONS, PLACES, SLOTS, LENGTHS = range(5)


@dataclass
class DecodeGraphs:
    """Graphs by bucket, the buffers that they read and write, and what capturing them took."""

    numbers_5B: Tensor
    table_BP: Tensor
    last: Tensor
    null_slot: int
    page_size: int
    buckets: list[int] = field(default_factory=list)
    graphs: dict[int, torch.cuda.CUDAGraph] = field(default_factory=dict)
    outputs: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0
    device_bytes: int = 0

    @property
    def largest(self) -> int:
        """The largest batch that a graph takes."""
        return max(self.buckets, default=0)

    def replay(self, chunks: tuple[Chunk, ...], tables: BlockTables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One decode step: (logits [B, V], tokens, finite, the tokens fed), valid until the next replay."""
        batch = len(chunks)
        bucket = next(size for size in self.buckets if size >= batch)
        numbers, table = host_step(chunks, tables, bucket, self.page_size, self.null_slot)
        self.numbers_5B[:, :bucket].copy_(torch.from_numpy(numbers).pin_memory(), non_blocking=True)
        self.table_BP[:bucket].copy_(torch.from_numpy(table).pin_memory(), non_blocking=True)
        self.graphs[bucket].replay()
        logits_BV, tokens_B, finite_B, fed_B = self.outputs[bucket]
        return logits_BV[:batch], tokens_B[:batch], finite_B[:batch], fed_B[:batch]


def host_step(
    chunks: tuple[Chunk, ...], tables: BlockTables, bucket: int, page_size: int, null_slot: int
) -> tuple[Any, Any]:
    """(int64 [5, bucket] of tokens, positions, places, slots and lengths; int32 block tables [bucket, P]), padded."""
    for chunk in chunks:
        tables.update(chunk.sequence)
    slots = [chunk.sequence.slot for chunk in chunks]
    starts = np.array([chunk.start for chunk in chunks])
    batch = len(chunks)
    numbers = np.zeros((5, bucket), dtype=np.int64)
    numbers[SLOTS] = null_slot
    table = np.zeros((bucket, tables.rows.shape[1]), dtype=np.int32)
    table[:batch] = tables.rows[slots]
    numbers[TOKENS, :batch] = [chunk.sequence.tokens[chunk.start] for chunk in chunks]
    numbers[POSITIONS, :batch] = starts
    numbers[PLACES, :batch] = table[np.arange(batch), starts // page_size] * page_size + starts % page_size
    numbers[SLOTS, :batch] = slots
    numbers[LENGTHS, :batch] = starts + 1
    return numbers, table


def buckets_up_to(most: int) -> list[int]:
    """1, 2, 4, 8, then every 8th up to 64, every 16th up to 128, every 32nd: padding costs at most an eighth or so."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, most + 32, 32)]
    return [size for size in sizes if size < most] + [most]


@torch.inference_mode()
def capture_decodes(runner: ModelRunner, most: int, say: Callable[[str], object] = lambda _: None) -> DecodeGraphs:
    """Capture a graph per bucket up to `most`, the largest first, so that smaller ones fit the memory that it left.

    Each bucket runs once before: kernels compile and libraries load there.
    """
    device = runner.device
    graphs = DecodeGraphs(
        numbers_5B=torch.zeros(5, most, dtype=torch.int64, device=device),
        table_BP=torch.zeros(most, runner.tables.rows.shape[1], dtype=torch.int32, device=device),
        last=runner.last,
        null_slot=len(runner.last) - 1,
        page_size=runner.cache.page_size,
    )
    graphs.numbers_5B[SLOTS] = graphs.null_slot
    free_bytes, started = torch.cuda.mem_get_info()[0], time.perf_counter()
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()
    for bucket in reversed(buckets_up_to(most)):
        step = bucket_step(runner, graphs, bucket)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            graphs.outputs[bucket] = step()
        graphs.graphs[bucket] = graph
        graphs.buckets.insert(0, bucket)
        say(f"captured a decode graph for {bucket} sequences")
    torch.cuda.synchronize()
    graphs.seconds = time.perf_counter() - started
    graphs.device_bytes = free_bytes - torch.cuda.mem_get_info()[0]
    return graphs


def bucket_step(
    runner: ModelRunner, graphs: DecodeGraphs, bucket: int
) -> Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A closure that runs a bucket's decode step on the graphs' buffers."""
    from serveproof.ops import paged_plan

    numbers_5B, table_BP = graphs.numbers_5B[:, :bucket], graphs.table_BP[:bucket]
    pool_NPHD = runner.cache.pool[0, 0]
    q_BHE = torch.empty(bucket, runner.attention.heads, pool_NPHD.shape[-1], device=runner.device)
    plan = paged_plan.make_plan(q_BHE, pool_NPHD, most_parts(bucket))

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens_B, positions_B, places_B, slots_B, lengths_B = numbers_5B.unbind()
        fed_B = torch.where(tokens_B < 0, graphs.last[slots_B], tokens_B)
        paged_plan.fill_plan(plan, lengths_B)
        step = StepTensors(fed_B, positions_B, places_B, lengths_B, table_BP)
        runner.attention.plan(step, plan)
        hidden_BD = runner.forward(fed_B, positions_B)
        logits_BV = runner.model.logits(hidden_BD)
        chosen_B, finite_B = sampler.greedy(logits_BV)
        graphs.last[slots_B] = chosen_B
        return logits_BV, chosen_B, finite_B, fed_B

    return run
