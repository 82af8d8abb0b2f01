"""Steps that hold pieces of prompts, with their dense parts as CUDA graphs: attention runs between the graphs, for its
lengths change from step to step.

The same cut as the pair piece_graphs, over the rows of prompts and decodes together. Eager, such a step launches some
two hundred kernels, which costs more than a few hundred rows compute; from LARGEST rows on it is the other way round.
Padding rows write into block 0, and nobody reads what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from serveproof.engine.attention import StepTensors
from serveproof.ops.piece_capture import Captured, capture

if TYPE_CHECKING:
    from serveproof.engine.fused import FusedForward
    from serveproof.engine.model_runner import ModelRunner

LARGEST = 1024


@dataclass
class Work:
    """What a bucket's pieces read and write: tokens, positions and places of its rows, a layer's queries and what
    attention makes of them, the last hidden states."""

    numbers_3N: Tensor
    q_NHE: Tensor
    attended_NHE: Tensor
    hidden_ND: Tensor


@dataclass
class MixedGraphs:
    """Pieces by bucket of rows: before the first attention, between two, after the last."""

    forward: FusedForward
    buckets: list[int]
    captured: Captured
    work: dict[int, Work]

    @property
    def largest(self) -> int:
        """The most rows that the graphs take."""
        return self.buckets[-1]

    def replay(self, step: StepTensors) -> Tensor:
        """Final normed hidden states [N, D] of a step that attention has planned, valid until the next replay."""
        rows = len(step.tokens_N)
        bucket = next(size for size in self.buckets if size >= rows)
        work = self.work[bucket]
        torch.stack((step.tokens_N, step.positions_N, step.slots_N), out=work.numbers_3N[:, :rows])
        work.numbers_3N[:, rows:].zero_()
        first, *rest = self.captured.graphs[bucket]
        first.replay()
        for layer, graph in enumerate(rest):
            self.forward.attention.read(layer, work.q_NHE[:rows], work.attended_NHE[:rows])
            graph.replay()
        return work.hidden_ND[:rows]


def buckets_up_to(most: int) -> list[int]:
    """Every 64th to 512, then every 128th: padding costs less than what eager launches would."""
    sizes = [*range(64, 512, 64), *range(512, LARGEST + 1, 128)]
    return [size for size in sizes if size < most] + [most] * (most <= LARGEST)


@torch.inference_mode()
def capture_mixed(runner: ModelRunner, most: int, say: Callable[[str], object] = lambda _: None) -> MixedGraphs:
    """Capture the pieces of every bucket for steps of up to `most` rows, or LARGEST."""
    forward = runner.fused
    assert forward is not None  # noqa: S101 (told to mypy)
    layers = len(forward.model.layers)
    buckets = buckets_up_to(most)
    device, dtype, config = runner.device, forward.model.norm.weight.dtype, forward.model.config
    numbers_3N = torch.zeros(3, buckets[-1], dtype=torch.int64, device=device)
    q_NHE = torch.zeros(buckets[-1], runner.attention.heads, config.head_dim, dtype=dtype, device=device)
    attended_NHE = torch.zeros_like(q_NHE)
    hidden_ND = torch.zeros(buckets[-1], config.hidden_size, dtype=dtype, device=device)
    work: dict[int, Work] = {}

    def pieces_of(bucket: int) -> list[Callable[[], None]]:
        say(f"capturing the pieces of a step of {bucket} rows")
        own = Work(numbers_3N[:, :bucket], q_NHE[:bucket], attended_NHE[:bucket], hidden_ND[:bucket])
        work[bucket] = own
        tokens_N, positions_N, places_N = own.numbers_3N
        x_ND = torch.empty_like(own.hidden_ND)

        def first() -> None:
            x_ND.copy_(forward.model.embed(tokens_N))
            forward.before(0, x_ND, None, positions_N, places_N, own.q_NHE)

        def between(layer: int) -> None:
            delta_ND = forward.after(layer - 1, x_ND, own.attended_NHE)
            forward.before(layer, x_ND, delta_ND, positions_N, places_N, own.q_NHE)

        def last() -> None:
            own.hidden_ND.copy_(forward.normed(x_ND, forward.after(layers - 1, x_ND, own.attended_NHE)))

        return [first, *(partial(between, layer) for layer in range(1, layers)), last]

    captured = capture(pieces_of, buckets)
    return MixedGraphs(forward, buckets, captured, work)
