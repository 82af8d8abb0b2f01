"""The command line itself: what it lists, what it refuses, and that it asks the DAG for what it was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import aisp
from serveproof import comparison, history, pairs, targets
from serveproof.comparison import Found
from serveproof.results import MeasureCase, Status
from tests.test_expectations import passed, record

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(aisp.app, list(arguments), catch_exceptions=False)


def test_every_pair_is_a_target() -> None:
    listed = json.loads(call("bench", "list-targets", "--chapter", "ch16", "--json").stdout)
    assert [one["target"] for one in listed] == [f"ch16:{name}" for name in pairs.names()]
    assert all(one["summary"] and one["state"] for one in listed)
    table = call("bench", "list-targets").stdout
    assert all(one["target"] in table for one in listed)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list-targets", "--chapter", "ch15"), "chapter 'ch15' doesn't exist"),
        (("run", "--targets", "ch16:flash_spd"), "did you mean 'ch16:flash_sdp'?"),
        (("run", "--targets", "flash_sdp", "--iterations", "1"), "at least 2 rounds"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments: tuple[str, ...], told: str) -> None:
    found = call("bench", *arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith("serveproof: ")
    assert found.stderr.count("\n") == 1
    assert told in found.stderr


@pytest.mark.parametrize("arguments", [("run",), ("run", "--targets", "ch16", "--profile", "deep"), ("nothing",)])
def test_what_the_options_forbid_is_code_2(arguments: tuple[str, ...]) -> None:
    assert call("bench", *arguments).exit_code == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the DAG was asked for, without running it: one pair that passed, and whatever a test sets as exit code."""
    seen: list[Any] = []

    def run(request: targets.Request, *more: str, quiet: bool = False) -> int:
        seen.append((request, more, quiet))
        return 0

    monkeypatch.setattr(targets, "run", run)
    monkeypatch.setattr(targets, "keys", lambda _: ["cpu"])
    monkeypatch.setattr(history, "note", lambda _: None)
    monkeypatch.setattr(comparison, "find", lambda *_: Found([record(passed(2.0))], [], [], None))
    return seen


def test_the_options_reach_the_dag(asked: list[Any]) -> None:
    found = call(
        "bench", "run", "--targets", "ch16:flash_sdp,paged_attention", "--targets", "fp8_kv_cache", "--profile",
        "minimal", "--iterations", "5", "--configfile", str(ROOT / "config/smoke.yaml"), "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    ((request, more, quiet),) = asked
    wanted = ["flash_sdp", "fp8_kv_cache", "paged_attention"]
    assert request == targets.Request(wanted, "minimal", 5, ROOT / "config/smoke.yaml")
    assert (more, quiet) == ((), True)
    (case,) = json.loads(found.stdout)["cases"]
    assert (case["pair"], case["status"], case["speedup"]["value"]) == ("toy", "passed", 2.0)


def test_a_case_that_did_not_pass_is_code_1(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[Status, int]] = [("failed", 1), ("out_of_memory", 1), ("skipped", 0)]
    for status, code in ends:
        case = MeasureCase("a", "cpu", {}, status, "because")
        monkeypatch.setattr(comparison, "find", lambda *_, case=case: Found([record(case)], [], [], None))
        found = call("bench", "run", "--targets", "ch16")
        assert (found.exit_code, "because" in found.stdout) == (code, True)


def test_a_failed_job_is_code_1_and_shows_no_figures(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "run", lambda *_, **__: 1)
    found = call("bench", "run", "--targets", "ch16")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "a job failed" in found.stderr


def test_expectations_are_rewritten_when_asked(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    updated: list[str] = []
    monkeypatch.setattr(comparison, "update", lambda hardware, _: [*updated, updated.append(hardware) or "rewritten"])
    assert "rewritten" in call("bench", "run", "--targets", "ch16", "--update-expectations").stdout
    assert updated == ["cpu"]


def test_shells_complete_targets() -> None:
    """As bash asks; it breaks words at the colon, so pairs go without their chapter."""
    words = {"COMP_WORDS": "aisp bench run --targets flash", "COMP_CWORD": "4", "_AISP_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "cli.aisp"], cwd=ROOT, env={**os.environ, **words, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [name for name in pairs.names() if name.startswith("flash")]


def test_it_starts_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "cli.aisp", "bench", "list-targets", "--chapter", "ch16"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ch16:paged_attention" in done.stdout
