"""Measuring end to end with a toy pair: verify, measure, judge, compare as their own commands in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from serveproof.bench.job import CaseReply
from serveproof.bench.measure import refusals_told
from serveproof.pairs import ROOT
from serveproof.results import Ceilings, HardwareRecord, MeasureCase, MeasureRecord, VerifyRecord, read, write

# About 2 and 1 ms of one thread's matrix products a call. TOY: an injected slowdown, or a fault.
BASELINE = """
import torch
def make_inputs(axes, device, seed):
    return {"x": torch.randn(axes["n"], axes["n"], generator=torch.Generator().manual_seed(seed))}
def reference(inputs):
    return inputs["x"].double() @ inputs["x"].double()
def work(axes):
    return {"flops": 2 * axes["n"] ** 3, "bytes": 8 * axes["n"] ** 2, "dtype": "float32", "items": 1, "item": "product"}
def build(inputs):
    def run():
        for _ in range(20):
            out = inputs["x"] @ inputs["x"]
        return out
    return run
"""
OPTIMIZED = '''"""A toy that does the same product half as often."""
import os
import torch
TOY = os.environ.get("TOY", "")
def requires(device):
    return "no toys today" if TOY == "requires" else None
def build(inputs):
    if TOY == "refuses":
        raise NotImplementedError("head_dim 7 is not supported")
    if TOY == "raises":
        raise RuntimeError("broken on purpose")
    if TOY == "crashes":
        os.abort()
    times = 12 if TOY == "slow" else 10
    kept = inputs["x"] @ inputs["x"]
    def run():
        if TOY == "cached":
            return kept
        for _ in range(times):
            out = inputs["x"] @ inputs["x"]
        return -out if TOY == "wrong" else out
    return run
'''
CASES = [{"case": "small", "tier": "cpu", "axes": {"n": 192}, "tolerance_eps": 32}]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name in ("serveproof", "scripts", "config", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "compare.py", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/baseline_toy.py").write_text(BASELINE)
    (tmp_path / "kernels/optimized_toy.py").write_text(OPTIMIZED)
    ceilings(tmp_path, flops_per_s=1e15)
    return tmp_path


def ceilings(root: Path, flops_per_s: float) -> None:
    found = Ceilings(1e15, 1e15, {"float32": flops_per_s}, "made up, far above any machine")
    record = HardwareRecord("cpu", "cpu", "CPU", 1, [], "", "", "", "", "", 1, 1, None, None, found, "")
    write(root / "results/cpu/hardware.json", record)


def command(root: Path, *arguments: str, fault: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "TOY": fault, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def measured(root: Path, fault: str = "", processes: int = 2, rounds: int = 2) -> MeasureCase:
    folder = root / "results/cpu/pairs/toy"
    pair = ["--key", "cpu", "--pair", "toy", "--cases", json.dumps(CASES)]
    verified, record = str(folder / "verify.json"), str(folder / "measure.json")
    command(root, "scripts/verify_pair.py", *pair, "--out", verified, fault=fault)
    more = ["--hardware", "results/cpu/hardware.json", "--verified", verified, "--rounds", str(rounds)]
    more += ["--processes", str(processes), "--out", record, "--out-samples", str(folder / "samples.parquet")]
    command(root, "scripts/measure_pair.py", *pair, *more, fault=fault)
    (case,) = read(record, MeasureRecord).cases
    return case


@pytest.mark.timed
def test_a_20_percent_slowdown_regresses_and_an_a_a_run_does_not(toy: Path) -> None:
    (toy / "expectations_cpu.json").unlink(missing_ok=True)
    first = measured(toy, processes=4, rounds=12)
    assert first.status == "passed"
    assert first.speedup is not None
    assert 1.6 < first.speedup.value < 2.4
    samples = pl.read_parquet(toy / "results/cpu/pairs/toy/samples.parquet")
    assert samples.shape == (4 * 12 * 4, 7)
    assert samples["gpu_busy_ms"].null_count() == len(samples)
    command(toy, "compare.py", "--update-expectations")
    measured(toy, processes=4, rounds=12)
    again = command(toy, "compare.py", check=False)
    assert "regressed" not in again.stdout
    assert again.returncode in (0, 3)  # met; or inconclusive beside a busy neighbour, never regressed
    measured(toy, fault="slow", processes=4, rounds=12)
    slowed = command(toy, "compare.py", check=False)
    assert "✗ regressed" in slowed.stdout
    assert slowed.returncode == 1


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("wrong", "failed", "optimized: relative error"),
        ("cached", "failed", "optimized: relative error"),
        ("requires", "skipped", "no toys today"),
        ("refuses", "skipped", "head_dim 7 is not supported"),
        ("raises", "error", "broken on purpose"),
    ],
)
def test_only_what_passed_has_a_time(toy: Path, fault: str, status: str, reason: str) -> None:
    case = measured(toy, fault)
    assert case.status == status
    assert reason in case.reason
    assert (case.speedup, case.baseline, case.optimized, case.timing) == (None, None, None, None)
    assert pl.read_parquet(toy / "results/cpu/pairs/toy/samples.parquet").is_empty()
    # the sides are told apart: only the one at fault says so
    (verified,) = read(toy / "results/cpu/pairs/toy/verify.json", VerifyRecord).cases
    assert verified.baseline.status == ("skipped" if fault == "requires" else "passed")
    judged = command(toy, "compare.py", check=False)
    assert judged.returncode == (0 if status == "skipped" else 1), judged.stdout


def test_faster_than_the_roofline_is_an_error_and_a_crash_is_a_status(toy: Path) -> None:
    ceilings(toy, flops_per_s=1e6)
    case = measured(toy)
    assert case.status == "error"
    assert "faster than the roofline allows" in case.reason
    assert case.speedup is None
    # it verified; then the measuring process dies
    folder = toy / "results/cpu/pairs/toy"
    more = ["--hardware", "results/cpu/hardware.json", "--verified", str(folder / "verify.json"), "--processes", "2"]
    more += ["--rounds", "2", "--out", str(folder / "measure.json"), "--out-samples", str(folder / "samples.parquet")]
    pair = ["--key", "cpu", "--pair", "toy", "--cases", json.dumps(CASES)]
    command(toy, "scripts/measure_pair.py", *pair, *more, fault="crashes")
    (crashed,) = read(folder / "measure.json", MeasureRecord).cases
    assert crashed.status == "error"
    assert "a measuring process ended with code -6" in crashed.reason


def test_nothing_measured_yet_is_one_line(toy: Path) -> None:
    done = command(toy, "compare.py", check=False)
    assert done.returncode == 2
    assert done.stderr == "serveproof: results/cpu: nothing measured here yet; run `snakemake --cores all`\n"


def test_the_log_names_the_back_ends_that_serve_no_case() -> None:
    def reply(case: str, *served: str, **refused: str) -> CaseReply:
        return CaseReply(case, "passed", times_ms=dict.fromkeys(served, 1.0), refusals=refused)

    a, b = reply("a", "ours", "push", te="can't be imported"), reply("b", "ours", te="no fp8 in", push="too large")
    assert refusals_told([a, b]) == "; refused: te (no fp8 in)"
    assert refusals_told([reply("a", "ours", "push")]) == ""
