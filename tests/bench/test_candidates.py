"""Choosing among candidates: by time, with every refusal kept, and none left is a skip."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from serveproof.bench import candidates, injection
from serveproof.bench.timing import Stopwatch

WATCH = Stopwatch("cpu")


def sleeper(seconds: float) -> Callable[[], Callable[[], str]]:
    def make() -> Callable[[], str]:
        def run() -> str:
            time.sleep(seconds)
            return f"{seconds}"

        return run

    return make


def refuses(error: Exception) -> Callable[[], Callable[[], str]]:
    def make() -> Callable[[], str]:
        raise error

    return make


def test_the_fastest_serves_and_the_others_are_remembered() -> None:
    found = candidates.choose(
        {"slow": sleeper(0.004), "fast": sleeper(0.001), "none": refuses(ValueError("head dim 72\nand more"))}, WATCH
    )
    assert found.backend == "fast"
    assert found.run() == "0.001"
    assert found.times_ms["slow"] > found.times_ms["fast"] > 1.0
    assert found.refusals == {"none": "head dim 72"}


def test_candidates_take_turns_so_that_a_machine_that_slows_down_chooses_as_a_steady_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_ms = {"a": 10.0, "b": 9.9, "c": 9.95}
    calls: list[str] = []

    def time_ms(self: Stopwatch, run: Callable[[], str], repeats: int) -> tuple[float, str]:
        calls.append(run())
        return own_ms[calls[-1]] * 1.002 ** len(calls), calls[-1]

    monkeypatch.setattr(Stopwatch, "time_ms", time_ms)
    found = candidates.choose({name: (lambda name=name: lambda: name) for name in own_ms}, WATCH)  # type: ignore[misc]
    assert found.backend == found.run() == "b"
    times_ms = found.times_ms
    assert times_ms["c"] / times_ms["b"] == pytest.approx(9.95 / 9.9, rel=0.003)
    assert times_ms["b"] < times_ms["c"] < times_ms["a"], "as the calls that chose have it, though a was timed first"


def test_a_refusal_at_the_first_call_counts_too() -> None:
    def make() -> Callable[[], str]:
        def run() -> str:
            raise RuntimeError("no kernel for this shape")

        return run

    found = candidates.choose({"late": make, "fast": sleeper(0.0)}, WATCH)
    assert found.refusals == {"late": "no kernel for this shape"}


def test_all_refusing_is_a_skip_with_every_reason() -> None:
    with pytest.raises(NotImplementedError, match="a: not here; b: nor here"):
        candidates.choose(
            {"a": refuses(NotImplementedError("not here")), "b": refuses(RuntimeError("nor here"))}, WATCH
        )


def test_a_bug_is_not_a_refusal() -> None:
    with pytest.raises(TypeError):
        candidates.choose({"a": refuses(TypeError("wrong")), "b": sleeper(0.0)}, WATCH)


def test_one_closure_needs_no_choice() -> None:
    run = sleeper(0.0)()
    run.backend = "only"  # type: ignore[attr-defined]
    found = candidates.choose(run, WATCH)
    assert (found.run, found.backend, found.times_ms) == (run, "only", {})


def test_an_injected_slowdown_is_about_what_was_asked_for() -> None:
    run = sleeper(0.004)()
    run.backend = "only"  # type: ignore[attr-defined]
    slow = injection.slowed(run, 50.0, WATCH)
    assert slow.backend == "only"  # type: ignore[attr-defined]
    started = time.perf_counter()
    slow()
    assert 0.0055 < time.perf_counter() - started < 0.02
    assert injection.slowed(run, 0.0, WATCH) is run
