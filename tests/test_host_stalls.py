"""A timed test fails as any other where nothing stalled, and is run again and skipped only where something did."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests import host_stalls


def run(test: Callable[[], None], monkeypatch: pytest.MonkeyPatch, stalls_ms: list[float]) -> bool | None:
    @contextlib.contextmanager
    def watched() -> Iterator[list[float]]:
        yield stalls_ms

    monkeypatch.setattr(host_stalls, "watched", watched)
    item: Any = SimpleNamespace(
        name="test_planted", obj=test, funcargs={}, _fixtureinfo=SimpleNamespace(argnames=()),
        get_closest_marker=lambda name: pytest.mark.timed(tries=3).mark,
    )  # fmt: skip
    return host_stalls.pytest_pyfunc_call(item)


class Planted:
    """A test that fails so many times, then passes."""

    def __init__(self, failures: int, error: BaseException) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error


ERRORS = [AssertionError("assert 60 < 25"), SystemExit(1), pytest.fail.Exception("late"), ValueError("")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_nothing_stalled_a_failure_is_a_failure(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    test = Planted(1, error)
    with pytest.raises(type(error)):
        run(test, monkeypatch, [])
    assert test.calls == 1


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_the_host_stalled_it_is_run_again(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    test = Planted(2, error)
    assert run(test, monkeypatch, [43.0]) is True
    assert test.calls == 3


def test_after_its_last_try_it_is_skipped_saying_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "failed 3 times; the last time, the host kept processes waiting 2 times, up to 43 ms: assert 60"
    with pytest.raises(pytest.skip.Exception, match=wanted):
        run(Planted(9, AssertionError("assert 60 < 25")), monkeypatch, [21.0, 43.0])


def test_a_stall_is_seen() -> None:
    with host_stalls.watched() as stalls_ms:
        [watch] = [one for one in psutil.Process().children() if "stall_watch" in " ".join(one.cmdline())]
        time.sleep(0.05)
        os.kill(watch.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(watch.pid, signal.SIGCONT)
        time.sleep(0.05)
    assert max(stalls_ms) > 250
