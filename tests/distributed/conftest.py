"""Scripts of several ranks, started as a user starts them: gloo over loopback, each test with a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import forked
from tests.forked import ROOT

Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Started:
    """start(script, *arguments, ranks=2, launcher=[...], **environment): scripts/start_ranks.py in a process."""
    running: list[subprocess.Popen[str]] = []

    def begin(*command: object, ranks: int = 2, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen[str]:
        nodes = () if "--nodes" in launcher else ("--nodes", "1")
        process = subprocess.Popen(
            [sys.executable, "scripts/start_ranks.py", *nodes, "--ranks", str(ranks), *launcher, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield begin  # type: ignore[misc]
    for process in running:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], limit_s: float = 90) -> tuple[int, str]:
    """(exit code, output); a hang is an error."""
    output, _ = process.communicate(timeout=limit_s)
    return process.returncode, output


def refused(script: str, arguments: Sequence[Sequence[object]], folder: Path) -> str:
    """The one line that rank 0 alone says; every rank has ended as for bad input."""
    (first, said), *others = forked.run(script, arguments, folder)
    assert {first, *(code for code, _ in others)} == {2}, said
    assert not any(lines_of(unsaid) for _, unsaid in others), "rank 0 alone says it"
    assert "Traceback" not in said
    (line,) = lines_of(said)
    return line


def lines_of(output: str) -> list[str]:
    """What serveproof said to the user."""
    return [line for line in output.splitlines() if line.startswith("serveproof: ")]
