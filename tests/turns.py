"""Which tests run beside which, where `make test` has two workers.

A folder with fixtures of its own keeps to one worker, any other file does; the folders that take longest come first.
A test that is `timed` (tests/host_stalls.py) runs when no other does, at the end.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LONGEST = ("tests/slurm", "tests/workflow")  # eight and twelve minutes, mostly of waiting
ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "build" / "test-turns"


def group_of(item: pytest.Item) -> str:
    """The tests that one worker runs, one after another."""
    if item.get_closest_marker("timed"):
        return "timed"
    folder = item.path.parent
    own = folder != ROOT / "tests" and (folder / "conftest.py").exists()
    return str((folder if own else item.path).relative_to(ROOT))


def rank(group: str) -> int:
    """When a group's turn comes, the smallest first."""
    if group in LONGEST:
        return LONGEST.index(group)
    return len(LONGEST) + (group == "timed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: rank(group_of(item)))


@contextmanager
def turn(alone: bool, folder: Path = LOCKS) -> Iterator[None]:
    """Hold the machine, with others or alone. Who waits to be alone keeps the door: nobody slips in before."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "door").open("a") as door, (folder / "room").open("a") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(alone=item.get_closest_marker("timed") is not None):
        return (yield)
