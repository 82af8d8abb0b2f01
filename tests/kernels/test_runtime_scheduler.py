"""Both schedules give every output token the state that its sequence alone would; what they tell is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.inputs import Refill
from serveproof.bench.verification import CORRUPTIONS, check, corrupt

PAIR = pairs.load("runtime_scheduler")
AXES = {
    "requests": 5, "slots": 2, "max_prompt": 12, "max_output": 9, "layers": 2, "heads": 2, "head_dim": 8, "budget": 6,
    "dtype": "float32",
}  # fmt: skip


def made(requests: list[tuple[int, int]], seed: int = 0, **changes: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PAIR.baseline, "draw_requests", lambda axes: requests)
        longest = {"max_prompt": max(p for p, _ in requests), "max_output": max(o for _, o in requests)}
        inputs: dict[str, Any] = PAIR.baseline.make_inputs(AXES | longest | changes, "cpu", seed)
        return inputs


def built(inputs: dict[str, Any]) -> dict[str, Any]:
    sides = {"baseline": PAIR.baseline, "optimized": PAIR.optimized}
    return {name: side.build(pairs.restrict(side, inputs)) for name, side in sides.items()}


request = st.tuples(st.integers(1, 14), st.integers(1, 10))


@settings(max_examples=25, deadline=None)
@given(requests=st.lists(request, min_size=1, max_size=6), slots=st.integers(1, 4), more=st.integers(0, 12))
def test_any_requests_slots_and_budget(requests: list[tuple[int, int]], slots: int, more: int) -> None:
    inputs = made(requests, slots=slots, budget=slots + more)
    reference = PAIR.baseline.reference(inputs)
    assert reference.dtype == torch.float64
    assert reference.shape[0] == sum(output for _, output in requests)
    for run in built(inputs).values():
        for _ in range(2):  # again over a cache that holds the last run
            torch.testing.assert_close(run().double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("requests", [[(1, 1)], [(1, 9)], [(12, 1)], [(1, 1)] * 5, [(12, 9), (1, 1), (1, 1)]], ids=str)
def test_extreme_requests(requests: list[tuple[int, int]]) -> None:
    inputs = made(requests)
    for run in built(inputs).values():
        torch.testing.assert_close(run().double(), PAIR.baseline.reference(inputs), rtol=1e-4, atol=1e-4)
        assert run.observed()["output_throughput"][0] > 0


@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_new_values_in_place_and_the_four_corruptions(side: str) -> None:
    refill = Refill(PAIR, AXES, "cpu", seed=3)
    run = built(refill.live)[side]
    stale = run().clone()
    refill.fresh()
    output, reference = run(), PAIR.baseline.reference(refill.live)
    assert check(output, reference, 64).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, output, stale), reference, 64).status == "failed", kind


def test_bfloat16_stays_within_the_gpu_cases_bound() -> None:
    inputs = made([(20, 8), (3, 12), (9, 4)], layers=4, heads=4, head_dim=32, dtype="bfloat16", budget=16)
    for run in built(inputs).values():
        found = check(run(), PAIR.baseline.reference(inputs), 4)
        assert found.status == "passed", found.reason


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=8),
    done=st.lists(st.integers(0, 20), min_size=8, max_size=8),
    more=st.integers(0, 9),
)
def test_a_step_keeps_to_its_budget_and_brings_every_decode_on(
    requests: list[tuple[int, int]], done: list[int], more: int
) -> None:
    running = {r: [r, min(done[r], sum(requests[r]) - 2)] for r in range(len(requests)) if sum(requests[r]) > 1}
    running |= {r: [r, 0] for r in range(len(requests)) if r not in running}
    chosen = dict(PAIR.optimized.next_step(running, requests, len(requests) + more))
    assert 0 < sum(chosen.values()) <= len(requests) + more
    for r, (_, fed) in running.items():
        if fed >= requests[r][0]:
            assert chosen[r] == 1
        else:
            assert chosen.get(r, 0) <= requests[r][0] - fed


def test_a_budget_below_the_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="less than the 4 slots"):
        PAIR.optimized.build(pairs.restrict(PAIR.optimized, made([(2, 2)], slots=4, budget=3)))


def test_steps_and_waste_are_what_the_schedules_make_them() -> None:
    """Two slots; outputs 4, 1 | 1, 3. Static: 4 + 3 steps. Continuous: the second slot refills at once."""
    inputs = made([(2, 4), (4, 1), (1, 1), (3, 3)], slots=2, budget=8)
    static, continuous = (run for run in built(inputs).values())
    static()
    continuous()
    assert static.observed()["steps"][0] == 7
    computed, useful = 2 * 4 + 3 * 2 + 2 * 3 + 2 * 2, 2 + 4 + 3 + 1 + 3 + 2
    assert static.observed()["wasted_tokens"][0] == pytest.approx(100 * (1 - useful / computed))
    assert continuous.observed()["steps"][0] == 5
    assert continuous.observed()["wasted_tokens"][0] == 0


def test_figures_of_a_clock_with_known_times() -> None:
    clock = PAIR.baseline.Clock(False)
    clock.times = {0: [1.0, 1.5, 2.5], 1: [0.5], 2: [2.0, 4.0]}
    clock.steps, clock.computed, clock.useful = 6, 8, 6
    told = {name: value for name, (value, _, _) in clock.figures().items()}
    assert told == pytest.approx({
        "time_per_output_token_ms": 1e3 * (2.5 / 3 + 0.5 + 2.0) / 3,
        "tpot_ms": 1e3 * (0.75 + 2.0) / 2,
        "ttft_p50_ms": 1000.0,
        "ttft_p99_ms": 2000.0,
        "output_throughput": 6 / 4.0,
        "steps": 6,
        "wasted_tokens": 25.0,
    })  # fmt: skip


def test_every_token_is_told_once() -> None:
    inputs = made([(5, 3), (2, 6), (7, 1)])
    clocks: list[Any] = []

    def clock_of(cuda: bool) -> Any:
        clocks.append(PAIR.baseline.Clock(cuda))
        return clocks[-1]

    PAIR.optimized.build(pairs.restrict(PAIR.optimized, inputs | {"clock": clock_of}))()
    assert {r: len(times) for r, times in clocks[0].times.items()} == {0: 3, 1: 6, 2: 1}
    assert all(times == sorted(times) for times in clocks[0].times.values())
    assert clocks[0].useful == 5 + 2 + 2 + 5 + 7


def test_requests_are_long_tailed_and_the_same_for_every_seed() -> None:
    axes = AXES | {"requests": 64, "max_prompt": 512, "max_output": 128}
    found = PAIR.baseline.draw_requests(axes)
    assert found == PAIR.baseline.draw_requests(axes)
    for lengths in (sorted(p for p, _ in found), sorted(o for _, o in found)):
        assert lengths[57] > 2 * lengths[32]
        assert lengths[32] > 2 * lengths[6]


def test_work_counts_the_fed_tokens_once() -> None:
    work = PAIR.baseline.work(AXES)
    fed = sum(p + o - 1 for p, o in PAIR.baseline.draw_requests(AXES))
    assert work["flops"] == 2 * 2 * 12 * 16 * 16 * fed
    assert work["bytes"] == 2 * 12 * 16 * 16 * 4
