"""Which tests run beside which, where `make test` has two workers.

A folder with fixtures of its own keeps to one worker, any other file does. The two that take longest, nine minutes each
on two cores, don't meet: SLURM's, which mostly waits, comes first, that of the workflow in the middle. What has a test
that is `timed` (tests/host_stalls.py) comes last: it runs when no other does.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.locks import locked

FIRST, MIDDLE = "tests/slurm", "tests/workflow"
ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "build" / "test-turns"


def group_of(nodeid: str) -> str:
    """The file or folder whose tests one worker runs, one after another."""
    file = Path(nodeid.split("::")[0])
    own = file.parent != Path("tests") and (ROOT / file.parent / "conftest.py").exists()
    return str(file.parent if own else file)


def in_order(tests: list[tuple[str, bool]]) -> list[int]:
    """Positions of the tests (node id, whether it is timed) in the order in which their groups' turns come."""
    groups = [group_of(nodeid) for nodeid, _ in tests]
    last = {group for group, (_, timed) in zip(groups, tests, strict=True) if timed} - {FIRST, MIDDLE}
    others = [group for group in dict.fromkeys(groups) if group not in {FIRST, MIDDLE, *last}]
    half = len(others) // 2
    turns = [FIRST, *others[:half], MIDDLE, *others[half:], *sorted(last)]
    return sorted(range(len(tests)), key=lambda position: turns.index(groups[position]))


def is_timed(item: pytest.Item) -> bool:
    return item.get_closest_marker("timed") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = [items[position] for position in in_order([(item.nodeid, is_timed(item)) for item in items])]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By group. xdist 3.8.0's own `--dist loadgroup` is without effect under pytest 9.2: no renamed test is seen."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # the order is ours
    return ByGroup(config, log)


@contextmanager
def turn(alone: bool, folder: Path = LOCKS) -> Iterator[None]:
    """Hold the machine, with others or alone. Who waits to be alone keeps the door: nobody slips in before."""
    with ExitStack() as held:
        with locked(folder / "door"):
            held.enter_context(locked(folder / "room", shared=not alone))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(alone=is_timed(item)):
        return (yield)
