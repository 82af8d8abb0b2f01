"""Who runs beside whom: a timed test when no other does, and a waiting one is not passed by."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import turns

ROOT = turns.ROOT


def item(path: str, timed: bool = False) -> Any:
    return SimpleNamespace(path=ROOT / path, get_closest_marker=lambda name: timed and name == "timed")


@pytest.mark.parametrize(
    ("path", "timed", "group"),
    [
        ("tests/slurm/test_run.py", False, "tests/slurm"),
        ("tests/slurm/test_run.py", True, "timed"),
        ("tests/bench/test_ladder.py", False, "tests/bench/test_ladder.py"),
        ("tests/test_docs.py", False, "tests/test_docs.py"),
    ],
)
def test_what_keeps_to_one_worker(path: str, timed: bool, group: str) -> None:
    assert turns.group_of(item(path, timed)) == group


def test_the_longest_come_first_and_what_is_timed_last() -> None:
    groups = ["timed", "tests/bench/test_ladder.py", "tests/workflow", "tests/slurm", "tests/cli/test_aisp.py"]
    assert sorted(groups, key=turns.rank) == [
        "tests/slurm", "tests/workflow", "tests/bench/test_ladder.py", "tests/cli/test_aisp.py", "timed",
    ]  # fmt: skip
    assert all((ROOT / name / "conftest.py").exists() for name in turns.LONGEST)


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
