"""Who runs beside whom: a timed test when no other does, and a waiting one is not passed by."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests import turns


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/slurm/test_run.py::test_gpus[a::b]", "tests/slurm"),
        ("tests/bench/test_ladder.py::test_one", "tests/bench/test_ladder.py"),
        ("tests/test_docs.py::test_one", "tests/test_docs.py"),
    ],
)
def test_what_keeps_to_one_worker(nodeid: str, group: str) -> None:
    assert turns.group_of(nodeid) == group


def test_the_longest_do_not_meet_and_what_has_a_timed_test_comes_last() -> None:
    tests = [
        ("tests/bench/test_measure.py::test_wrong", False),
        ("tests/bench/test_measure.py::test_slow", True),
        ("tests/workflow/test_dag.py::test_one", True),
        ("tests/bench/test_ladder.py::test_one", False),
        ("tests/slurm/test_run.py::test_one", False),
        ("tests/test_docs.py::test_one", False),
        ("tests/slurm/test_run.py::test_two", False),
    ]
    assert turns.in_order(tests) == [4, 6, 3, 2, 5, 0, 1]
    assert all((turns.ROOT / name / "conftest.py").exists() for name in (turns.FIRST, turns.MIDDLE))


def test_who_waits_to_be_alone_is_not_passed_by(tmp_path: Path) -> None:
    """One is in; one wants to be alone; a third, who may be beside the first, comes after and has to wait for both."""
    said: list[str] = []
    leave = threading.Event()

    def first() -> None:
        with turns.turn(alone=False, folder=tmp_path):
            said.append("first in")
            leave.wait(10)
            said.append("first out")

    def another(name: str, alone: bool) -> None:
        with turns.turn(alone=alone, folder=tmp_path):
            said.append(name)
            time.sleep(0.05)
            said.append(f"{name} out")

    threads = []
    for step in (first, lambda: another("alone", True), lambda: another("third", False)):
        threads.append(threading.Thread(target=step))
        threads[-1].start()
        time.sleep(0.1)
    assert said == ["first in"]
    leave.set()
    for thread in threads:
        thread.join(10)
    assert said == ["first in", "first out", "alone", "alone out", "third", "third out"]


def test_two_of_the_others_are_in_at_once(tmp_path: Path) -> None:
    with turns.turn(alone=False, folder=tmp_path), turns.turn(alone=False, folder=tmp_path):
        pass
