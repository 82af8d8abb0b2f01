"""A run that is killed, at any point, leaves whole files or none; started again it completes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import polars as pl

from tests.workflow.conftest import Checkout, error_line

ONE_PAIR = {"pairs": "[paged_attention]"}
# Of a killed run's logs: when one is (re)written its job is at work. Each comes after the one before in the DAG.
POINTS = ("hardware.log", "measure_paged_attention.log", "judge.log")


def assert_whole(folder: Path) -> None:
    """Every file that a reader would open is whole. What begins with a dot is a temporary that nobody reads."""
    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.name == "index.html":
            assert path.read_text().rstrip().endswith("</html>")


def wait_for(log: Path, process: subprocess.Popen[str], since_ns: int) -> None:
    """Until the job of this log has started in this run."""
    until = time.monotonic() + 120
    while not (log.exists() and log.stat().st_mtime_ns >= since_ns):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"{log.name} never came"
        time.sleep(0.01)


def test_killed_runs_are_completed(fresh: Checkout, tmp_path: Path) -> None:
    checkout = fresh.copy(tmp_path / "checkout")
    delay = random.Random(2)  # noqa: S311 - not for secrets
    for number, point in enumerate(POINTS):
        since_ns = time.time_ns()
        process = checkout.start(checkout.snakemake(**ONE_PAIR))
        wait_for(checkout.results / "cpu" / "logs" / point, process, since_ns)
        if number == 0:
            line = error_line(checkout.run(**ONE_PAIR))
            assert "another run is going on in this folder; wait for it, or stop it" in line
        time.sleep(delay.uniform(0, 1))
        if number == 1:
            os.killpg(process.pid, signal.SIGKILL)
        else:  # its jobs live on: they may neither spoil the next run nor be taken for a run
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert_whole(checkout.folder / "results")
        assert_whole(checkout.folder / "reports")
    done = checkout.run(**ONE_PAIR)
    assert done.returncode == 0, done.stdout
    assert (checkout.folder / "reports" / "index.html").exists()
    assert_whole(checkout.folder / "results")
    assert_whole(checkout.folder / "reports")
    assert checkout.planned(**ONE_PAIR) == []
