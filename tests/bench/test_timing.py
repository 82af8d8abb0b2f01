"""Taking turns: the order, the check of timed outputs, what is thrown away."""

from __future__ import annotations

from typing import Any

import pytest

from serveproof.bench import cupti_clock, timing


class FakeRefill:
    """Counts refills and remembers how many there were when each closure ran."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> None:
        self.count += 1

    fresh = next


def turns(
    rounds: int, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[timing.Samples, list[tuple[str, Any]], FakeRefill]:
    refill = FakeRefill()
    checked: list[tuple[str, Any]] = []
    # 3 ms a call: no repeats are needed to fill a sample
    monkeypatch.setattr(timing.Stopwatch, "time_ms", lambda self, run, repeats: (3.0, run()))
    runs = {side: (lambda side=side: (side, refill.count)) for side in ("baseline", "optimized")}
    watch = timing.Stopwatch("cpu")
    found = timing.take_turns(runs, refill, watch, rounds, 2, lambda side, output: checked.append((side, output)))
    return found, checked, refill


def test_rounds_alternate_abba_and_baab(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = turns(4, monkeypatch)
    orders = ["".join(s.side[0] for s in found.samples if s.round == number) for number in range(4)]
    assert orders == ["boob", "obbo", "boob", "obbo"]
    assert len(found.samples) == 16


def test_every_call_has_fresh_inputs_and_both_sides_timed_outputs_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    found, checked, refill = turns(3, monkeypatch)
    # 2 x 2 warm-ups, 4 a round, and a checking round more that is not recorded
    assert refill.count == 4 + 4 * 4
    assert {side for side, _ in checked} == {"baseline", "optimized"}
    assert [seen for _, (_, seen) in checked] == [refill.count - 1, refill.count]
    assert {s.round for s in found.samples} == {0, 1, 2}


def test_short_calls_are_repeated_to_fill_a_sample() -> None:
    runs = {side: (lambda: None) for side in ("baseline", "optimized")}
    watch = timing.Stopwatch("cpu")
    found = timing.take_turns(runs, FakeRefill(), watch, 1, 3, lambda side, output: None)  # type: ignore[arg-type]
    assert min(found.repeats.values()) > 100
    assert all(sample.time_ms < 1 for sample in found.samples)


def test_a_throttled_round_is_thrown_away_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = timing.Stopwatch("cpu")
    watch.device = "cuda"
    answers = iter([[], [], ["hw_thermal_slowdown"], [], [], [], [], []])
    monkeypatch.setattr(timing, "slowdown_reasons", lambda: next(answers))
    runs = {side: (lambda: None) for side in ("baseline", "optimized")}
    found = timing.take_turns(runs, FakeRefill(), watch, 3, 1, lambda side, output: None)  # type: ignore[arg-type]
    assert {s.round for s in found.samples} == {0, 2}
    assert found.discard_reasons == ["round 1: hw_thermal_slowdown"]


def test_calls_divide_the_time_and_what_a_closure_observes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        return None

    run.calls = 4  # type: ignore[attr-defined]
    run.observed = lambda: {"tpot_ms": (2.5, "ms", "")}  # type: ignore[attr-defined]
    monkeypatch.setattr(timing.Stopwatch, "_host_ms", lambda self, run, repeats: (12.0 * repeats, run()))
    watch = timing.Stopwatch("cpu")
    runs = dict.fromkeys(("baseline", "optimized"), run)
    found = timing.take_turns(runs, FakeRefill(), watch, 2, 1, lambda side, output: None)  # type: ignore[arg-type]
    assert {sample.time_ms for sample in found.samples} == {3.0}
    assert found.method == "host_clock"
    assert found.observed["optimized", "tpot_ms"] == [(2.5, "ms", "")] * 4


class Recorded(cupti_clock.CuptiClock):
    """A CUPTI that has recorded `spans`, of (start, end) in ns, since begin()."""

    def __init__(self, *spans: tuple[int, int]) -> None:
        self.recorded = [("kernel", start, end) for start, end in spans]
        self.spans: list[tuple[str, int, int]] = []
        self.kinds = ()
        self.begun = 0
        self.cupti = self

    def activity_flush_all(self, forced: int) -> None:
        self.spans.extend(self.recorded)

    def begin(self) -> None:
        self.begun += 1
        super().begin()


def test_the_gpu_is_busy_while_anything_runs_and_time_is_counted_once() -> None:
    # overlapping, one inside another, a gap, and out of order
    recorded = Recorded((5_000_000, 7_000_000), (0, 2_000_000), (1_000_000, 3_000_000), (500_000, 600_000))
    recorded.begin()
    assert recorded.busy_ms() == pytest.approx(5.0)
    nothing = Recorded()
    with pytest.raises(RuntimeError, match="launches nothing"):
        nothing.busy_ms()


def test_a_case_by_the_hosts_clock_has_the_gpus_time_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded((0, 3_000_000))
    monkeypatch.setattr(cupti_clock, "clock", lambda: recorded)
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)
    refill, runs = FakeRefill(), {side: (lambda: None) for side in ("baseline", "optimized")}
    vars(runs["optimized"])["calls"] = 3
    watch = timing.Stopwatch("cpu")
    assert timing.busy_turns(runs, refill, watch) == []  # type: ignore[arg-type]
    watch.device = "cuda"
    found = timing.busy_turns(runs, refill, watch)  # type: ignore[arg-type]
    assert refill.count == recorded.begun == len(found) == 4 * timing.BUSY_ROUNDS
    assert {(s.side, s.time_ms) for s in found} == {("baseline", 3.0), ("optimized", 1.0)}
    watch.on_device = True
    assert timing.busy_turns(runs, refill, watch) == []  # type: ignore[arg-type]
