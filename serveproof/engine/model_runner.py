"""From a step to its tokens: the step's rows as tensors, the forward pass, sampling, and the results back.

A sampled token's value stays on the device by its sequence's slot, so the next step can be launched before the host has
seen it; the host reads results when it asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serveproof.engine import sampler
from serveproof.engine.attention import PagedAttention, Piece, StepTensors
from serveproof.engine.cuda_graphs import DecodeGraphs, rows_of
from serveproof.engine.kv_cache import KVCache
from serveproof.engine.model import After, Before, Layer, Llama
from serveproof.engine.sequence import Chunk, Sampled, Sequence, Step
from serveproof.nvtx_ranges import span

if TYPE_CHECKING:
    from serveproof.engine.fused import FusedForward
    from serveproof.engine.mixed_graphs import MixedGraphs


# Logits of so many prompt tokens at a time: a row of float32 over 128 K words is half a megabyte.
SCORED_AT_ONCE = 128


@dataclass
class Pending:
    """A launched step. `read` waits for the device and gives a result for each chunk that samples."""

    read: Callable[[], list[Sampled]]

    def result(self) -> list[Sampled]:
        """Wait for the step."""
        return self.read()


class BlockTables:
    """Block tables by slot, int32 [max_running, pages] on the host, brought up to date by what was added."""

    def __init__(self, slots: int, pages: int) -> None:
        self.rows: NDArray[np.int32] = np.zeros((slots, pages), dtype=np.int32)
        self.seen: list[tuple[list[int] | None, int]] = [(None, 0)] * slots

    def update(self, sequence: Sequence) -> None:
        """Write the blocks that a sequence got since last time; a new table is a new list."""
        blocks, slot = sequence.blocks, sequence.slot
        before, count = self.seen[slot]
        if before is not blocks:
            count = 0
        if count != len(blocks):
            self.rows[slot, count : len(blocks)] = blocks[count:]
            self.seen[slot] = (blocks, len(blocks))


class ModelRunner:
    """Runs steps on one rank. The cache's block 0 takes what padding writes.

    max_running: slots; max_model_len: the longest sequence. compile_block: torch.compile of the layer's two pieces,
    which all layers share; fused: fused kernels on CUDA instead (serveproof.engine.fused). Once set, `decode_graphs`
    (serveproof.engine.cuda_graphs) replay steps of decodes alone and `mixed_graphs` (serveproof.engine.mixed_graphs)
    all others that are short enough. `on_scored`, if set, sees the logits of a scored prompt's tokens as they come: the
    sequence, the position of the first of these tokens, and a row of logits a token.
    """

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        max_running: int,
        max_model_len: int,
        compile_block: bool = False,
        fused: bool = False,
    ) -> None:
        self.model, self.cache = model, cache
        self.device = cache.pool.device
        self.attention = PagedAttention(cache, model.group.share(model.config.num_attention_heads))
        self.tables = BlockTables(max_running, -(-max_model_len // cache.page_size))
        self.last = torch.zeros(max_running + 1, dtype=torch.int64, device=self.device)
        self.before: Before = Layer.before
        self.after: After = Layer.after
        if compile_block:
            self.before = torch.compile(Layer.before, dynamic=True, fullgraph=True)
            self.after = torch.compile(Layer.after, dynamic=True, fullgraph=model.config.experts is None)
        self.fused: FusedForward | None = None
        if fused and not compile_block:
            from serveproof.engine.fused import FusedForward

            self.fused = FusedForward(model, self.attention, max_model_len)
        self.decode_graphs: DecodeGraphs | None = None
        self.mixed_graphs: MixedGraphs | None = None
        self.on_scored: Callable[[Sequence, int, Tensor], None] | None = None

    @torch.inference_mode()
    def launch(self, step: Step) -> Pending:
        """Start a step on the device after all those before it."""
        self.cache.clean(step.clean)
        self.cache.swap(step.swap_out, step.swap_in)
        if not step.chunks:
            return Pending(list)
        sampling = [chunk for chunk in step.chunks if chunk.samples]
        pure = all(chunk.length == 1 and chunk.samples for chunk in step.chunks)
        with span("decode" if pure else "prefill"):
            if pure and self.decode_graphs is not None and sum(map(rows_of, step.chunks)) <= self.decode_graphs.largest:
                logits_RV, tokens_R, finite_R, fed_R = self.decode_graphs.replay(step.chunks, self.tables)
            else:
                logits_RV, tokens_R, finite_R, fed_R = self._eager(step, sampling)
        if not sampling:
            return Pending(list)
        asked = [chunk.sequence.params for chunk in sampling]
        if any(params.temperature or params.repetition_penalty != 1 for params in asked):
            with span("sample"):
                tokens_R = sampler.sample(logits_RV.float(), _choices(sampling), fed_R)
            self.last[self._slots(sampling)] = tokens_R
        logits = logits_RV.clone() if any(params.logprobs is not None for params in asked) else None
        return self._pending(sampling, tokens_R, finite_R, logits)

    def _eager(self, step: Step, sampling: list[Chunk]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Any step: (logits of the rows that sample, their argmax, whether they are finite, the token fed there)."""
        rows, tensors, slots_N = self.tensors(step)
        tensors.tokens_N = torch.where(tensors.tokens_N < 0, self.last[slots_N], tensors.tokens_N)
        self.attention.plan(tensors)
        if self.mixed_graphs is not None and len(tensors.tokens_N) <= self.mixed_graphs.largest:
            hidden_ND = self.mixed_graphs.replay(tensors)
        else:
            hidden_ND = self.forward(tensors.tokens_N, tensors.positions_N)
        self._score_prompts(step, hidden_ND)
        picked = self._to_device(rows)
        logits_RV = self.model.logits(hidden_ND[picked])
        with span("sample"):
            tokens_R, finite_R = sampler.greedy(logits_RV)
        if sampling and not any(chunk.drafts for chunk in sampling):
            self.last[self._slots(sampling)] = tokens_R
        return logits_RV, tokens_R, finite_R, tensors.tokens_N[picked]

    def _score_prompts(self, step: Step, hidden_ND: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that follow this step's rows, for sequences that ask for them."""
        asking = [chunk for chunk in step.chunks if chunk.sequence.params.prompt_logprobs is not None]
        first_of = first_rows(step) if asking else {}
        for chunk in asking:
            sequence, first = chunk.sequence, first_of[id(chunk)] - chunk.start
            # what was scored before a preemption stands already
            begin, end = len(sequence.prompt_logprobs) + 1, min(chunk.context + 1, sequence.prompt_length)
            for at in range(begin, end, SCORED_AT_ONCE):
                to = min(at + SCORED_AT_ONCE, end)
                logits_RV = self.model.logits(hidden_ND[first + at - 1 : first + to - 1])
                if self.on_scored is not None:
                    self.on_scored(sequence, at, logits_RV)
                count = sequence.params.prompt_logprobs or 0
                sequence.prompt_logprobs += sampler.logprobs_of(logits_RV, sequence.tokens[at:to], count)

    def forward(self, tokens_N: Tensor, positions_N: Tensor) -> Tensor:
        """The model's forward, fused or with the compiled pieces; attention reads its plan."""
        if self.fused is not None:
            return self.fused(tokens_N, positions_N)
        hidden_ND: Tensor = self.model(tokens_N, positions_N, self.attention, self.before, self.after)
        return hidden_ND

    def tensors(self, step: Step) -> tuple[list[int], StepTensors, Tensor]:
        """(rows that sample, the step's tensors, the slot of each row): one copy of the numbers to the device."""
        page = self.cache.page_size
        singles = [chunk for chunk in step.chunks if chunk.length == 1]
        others = [chunk for chunk in step.chunks if chunk.length > 1]
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        first_of = first_rows(step)
        for chunk in (*singles, *others):
            sequence, count = chunk.sequence, rows_of(chunk)
            self.tables.update(sequence)
            tokens += sequence.tokens[chunk.start : chunk.context]
            tokens += chunk.drafts
            positions += range(chunk.start, chunk.start + count)
            blocks = sequence.blocks
            places += [blocks[at // page] * page + at % page for at in range(chunk.start, chunk.start + count)]
            slots += [sequence.slot] * count
        flat_4N = self._to_device([tokens, positions, places, slots])
        alone = sum(map(rows_of, singles))
        pages = [self.tables.rows[chunk.sequence.slot, : -(-chunk.context // page)] for chunk in others]
        pages_M = self._copied(np.concatenate(pages)) if pages else None
        pieces, seen = [], 0
        for chunk, own in zip(others, pages, strict=True):
            assert pages_M is not None  # noqa: S101 (told to mypy)
            pieces.append(Piece(first_of[id(chunk)], chunk.length, chunk.context, pages_M[seen : seen + len(own)]))
            seen += len(own)
        rows: list[int] = []
        for chunk in step.chunks:
            if chunk.samples:
                last = first_of[id(chunk)] + chunk.length - 1
                rows += range(last, last + len(chunk.drafts) + 1)
        tensors = StepTensors(
            tokens_N=flat_4N[0],
            positions_N=flat_4N[1],
            slots_N=flat_4N[2],
            lengths_B=flat_4N[1, :alone] + 1,
            table_BP=self._copied(self.tables.rows[slots[:alone]]),
            pieces=pieces,
            piece_pages_M=pages_M,
        )
        return rows, tensors, flat_4N[3]

    def _copied(self, made: NDArray[np.int32]) -> Tensor:
        held = torch.from_numpy(made)
        return held.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else held

    def _to_device(self, numbers: Any) -> Tensor:
        made = torch.tensor(numbers, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return made.to(self.device, non_blocking=True)

    def _slots(self, sampling: list[Chunk]) -> Tensor:
        return self._to_device([chunk.sequence.slot for chunk in sampling])

    def _pending(self, sampling: list[Chunk], tokens_R: Tensor, finite_R: Tensor, logits_RV: Tensor | None) -> Pending:
        """Start the copy of the tokens to the host; on CUDA an event says when it is there."""
        both_2R = torch.stack((tokens_R, finite_R.long()))
        event = None
        if both_2R.is_cuda:
            kept = torch.empty(both_2R.shape, dtype=torch.int64, pin_memory=True)
            kept.copy_(both_2R, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            both_2R = kept

        def read() -> list[Sampled]:
            if event is not None:
                event.synchronize()
            tokens, finite = both_2R.tolist()
            return _results(sampling, tokens, finite, logits_RV)

        return Pending(read)


def first_rows(step: Step) -> dict[int, int]:
    """The first row of each chunk by its id: single tokens with their drafts come first, then longer pieces."""
    found, row = {}, 0
    for chunk in sorted(step.chunks, key=lambda one: one.length > 1):
        found[id(chunk)] = row
        row += rows_of(chunk)
    return found


def _choices(sampling: list[Chunk]) -> list[sampler.Choice]:
    """A row for each token to choose: with drafts, one more than drafts."""
    rows = []
    for chunk in sampling:
        sequence = chunk.sequence
        for extra in range(len(chunk.drafts) + 1):
            history = sequence.tokens[: chunk.context - 1] if sequence.params.repetition_penalty != 1 else []
            rows.append(sampler.Choice(sequence.params, sequence.seed, chunk.context + extra, history))
    return rows


def _results(sampling: list[Chunk], tokens: list[int], finite: list[int], logits_RV: Tensor | None) -> list[Sampled]:
    """What each chunk gave: of drafts those that the model itself chose, and the token after them."""
    results = []
    row = 0
    for chunk in sampling:
        count = len(chunk.drafts) + 1
        own = tokens[row : row + count]
        kept = 1
        while kept < count and chunk.drafts[kept - 1] == own[kept - 1]:
            kept += 1
        wanted = chunk.sequence.params.logprobs
        if not all(finite[row : row + kept]):
            results.append(Sampled((), error="the logits are not finite: NaN or infinity in weights or activations"))
        elif wanted is None or logits_RV is None:
            results.append(Sampled(tuple(own[:kept])))
        else:
            logprobs = sampler.logprobs_of(logits_RV[row : row + kept], own[:kept], wanted)
            results.append(Sampled(tuple(own[:kept]), tuple(logprobs)))
        row += count
    return results
