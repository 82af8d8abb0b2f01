"""Which back end serves: each one a pair names is made, called and timed by the harness; the fastest is kept.

A kernel never times itself: choosing by the harness's own stopwatch means that what is chosen is the fastest by the
clock that it is then measured with.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from serveproof.bench.timing import Stopwatch
from serveproof.pairs import Run

CALLS = 11
# What a back end raises when it can't take a shape, dtype or page size. Anything else is an error of the pair.
REFUSALS = (NotImplementedError, RuntimeError, ValueError)
Maker = Callable[[], Run]


@dataclass
class Choice:
    """The closure that serves, each candidate's median time in ms, and why the others refused.

    times_ms: what serves in its last turns, the others by their ratio to it, so that none is faster than what serves.
    """

    run: Run
    backend: str
    times_ms: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


def refusal(error: Exception) -> str:
    """A back end's own reason on one line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else f"{type(error).__name__} without a message"


def made(makers: dict[str, Maker]) -> tuple[dict[str, Run], dict[str, str]]:
    """(closures that were made and called once, reasons of those that refused)."""
    runs: dict[str, Run] = {}
    refusals: dict[str, str] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            runs[name] = run
        except torch.cuda.OutOfMemoryError:
            raise
        except REFUSALS as error:
            refusals[name] = refusal(error)
    return runs, refusals


def choose(built: Run | dict[str, Maker], watch: Stopwatch, chosen: str = "") -> Choice:
    """The fastest candidate, or the one closure. NotImplementedError with every reason when all refuse.

    chosen: the one that an earlier process chose; no other is made. Each one is timed in turns with the fastest so
    far, so that what drifts falls on both.

    With several ranks a candidate counts as refused when any rank refuses it, and its time is the slowest rank's.
    """
    if not isinstance(built, dict):
        return Choice(built, getattr(built, "backend", ""))
    refusals: dict[str, str] = {}
    # each one's time as a share of the first one's, by way of what it was timed in turns with
    shares: dict[str, float] = {}
    best: Run | None = None
    backend, best_ms = "", 0.0
    for name, make in built.items() if not chosen else [(chosen, built[chosen])]:
        runs, refused = made({name: make})
        refused = _any_rank(refused)
        if refused:
            refusals |= refused
            continue
        tried = runs.pop(name)
        took_ms = [_slowest_rank(one) for one in in_turns([tried] if best is None else [tried, best], watch)]
        shares[name] = took_ms[0] / took_ms[-1] * shares.get(backend, 1.0)
        best_ms = min(took_ms)
        if took_ms[0] == best_ms:
            best, backend = tried, name
        del tried
    if best is None:
        raise NotImplementedError("; ".join(f"{name}: {reason}" for name, reason in refusals.items()))
    times_ms = {name: best_ms * share / shares[backend] for name, share in shares.items()}
    return Choice(best, backend, times_ms, refusals)


def in_turns(runs: list[Run], watch: Stopwatch) -> list[float]:
    """Each one's median ms of CALLS calls, after one that isn't counted."""
    times: list[list[float]] = [[watch.time_ms(run, 1)[0] for run in runs] for _ in range(CALLS + 1)]
    return [statistics.median(own) for own in zip(*times[1:], strict=True)]


def _gathered(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _slowest_rank(took_ms: float) -> float:
    return float(max(_gathered(took_ms)))


def _any_rank(refused: dict[str, str]) -> dict[str, str]:
    return {name: reason for one in _gathered(refused) for name, reason in one.items()}
