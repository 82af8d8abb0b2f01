"""Where measuring processes run: on which cores their own thread and what it starts may."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from serveproof.bench import processes
from serveproof.bench.job import Job

TIMED = Job(mode="time", pair="toy", cases=[], device="cpu", threads=2, rounds=1, warmup_rounds=1, seed=0)
CORES = os.sched_getaffinity(0)


def cores_of(job: Job) -> set[int]:
    """The cores that the launching thread of such a process may use once torch has been imported."""
    code = "import os, torch; print(os.sched_getaffinity(0))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=processes.environment(job), capture_output=True, text=True, check=True
    )
    found: set[int] = ast.literal_eval(done.stdout)
    return found


@pytest.mark.skipif(len(CORES) < 2, reason="one core: there is nothing to choose")
def test_only_what_is_timed_on_a_cpu_keeps_to_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "close")  # a user's own would put every GPU's launching thread on one core
    assert len(cores_of(TIMED)) == 1
    assert cores_of(msgspec.structs.replace(TIMED, device="cuda")) == CORES


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"ranks": 2}, {"mode": "probe"}, {"mode": "verify"}])
def test_nothing_else_is_bound(change: dict[str, Any]) -> None:
    bound, free = processes.environment(TIMED), processes.environment(msgspec.structs.replace(TIMED, **change))
    assert bound == free | processes.BINDING
