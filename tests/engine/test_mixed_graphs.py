"""Steps replayed in pieces against steps computed eagerly, on a CPU: a graph's replay is its piece run again there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from serveproof.engine import cuda_graphs
from serveproof.engine.loader import load_model
from serveproof.engine.model_runner import BlockTables, ModelRunner
from serveproof.engine.sequence import Chunk, SamplingParams, Sequence
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.ops.piece_capture import Captured

pytest.importorskip("triton")
from serveproof.engine import mixed_graphs
from serveproof.engine.fused import FusedForward

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for a CPU")


@dataclass
class Again:
    """A graph for a CPU: replayed, it runs its piece again."""

    replay: Callable[[], None]


@ON_CPU
@pytest.mark.parametrize("drafts", [0, 3])
@torch.inference_mode()
def test_steps_by_graphs_answer_as_steps_without(
    drafts: int, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(pieces_of: Callable[[int], list[Callable[[], None]]], buckets: list[int]) -> Captured:
        return Captured(None, {bucket: [Again(piece) for piece in pieces_of(bucket)] for bucket in buckets})  # type: ignore[misc]

    monkeypatch.setattr(mixed_graphs, "capture", capture)
    model = load_model(tiny_llama()[0])
    prompts = [[5, 6, 7, 5, 6, 7, 5, 6], [9] * 5, list(range(20)), [3]]
    answers = []
    for by_graphs in (False, True):
        settings = Settings(
            "fp32", page_size=4, max_running=3, max_model_len=40, token_budget=14, drafts=drafts, prefix_caching=False
        )
        engine = start_with(model, settings)
        runner = engine.runner
        assert isinstance(runner, ModelRunner)
        if by_graphs:
            runner.fused = FusedForward(model, runner.attention, 40)
            runner.mixed_graphs = mixed_graphs.capture_mixed(runner, settings.token_budget)
            monkeypatch.setattr(FusedForward, "__call__", None)  # every step fits the graphs
        params = SamplingParams(max_tokens=12, ignore_eos=True)
        answers.append([done.tokens for done in engine.generate(prompts, params)])
    assert answers[1] == answers[0]


def test_a_draft_is_a_row_of_its_own_in_a_decode_graph() -> None:
    tables = BlockTables(3, 4)
    first = Sequence("a", [1, 2, 3, 4, 5], 5, SamplingParams(), slot=0, blocks=[7, 9])
    second = Sequence("b", [6, 6], 2, SamplingParams(), slot=2, blocks=[8])
    chunks = (Chunk(first, 4, 1, True, (11, 12)), Chunk(second, 1, 1, True))
    numbers, table = cuda_graphs.host_step(chunks, tables, 6, 4, 3)
    assert numbers.tolist() == [
        [5, 11, 12, 6, 0, 0],
        [4, 5, 6, 1, 0, 0],
        [36, 37, 38, 33, 0, 0],
        [0, 3, 3, 2, 3, 3],
        [5, 6, 7, 2, 0, 0],
    ]
    assert table[:, :2].tolist() == [[7, 9], [7, 9], [7, 9], [8, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("most", [1, 64, 65, 1000, 1024, 9999])
def test_buckets_rise_to_the_most_rows_or_where_eager_is_as_good(most: int) -> None:
    buckets = mixed_graphs.buckets_up_to(most)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == min(most, mixed_graphs.LARGEST)
