"""The serving section: what a real run against the null server leaves behind, drawn, with verdicts and warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from serveproof import results
from serveproof.load_records import LoadRecord
from serveproof.report.data import collect
from serveproof.report.render import render
from serveproof.results import Judgement, Verdict
from tests.load_test.test_scripts import fake_server  # noqa: F401 - the server that scripts start
from tests.report import fake_results


@pytest.fixture
def folder(
    tmp_path: Path,
    load_script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    fake_server: Path,  # noqa: F811 - the fixture
) -> Path:
    """results/cpu with load tests of two servers and a sweep."""
    made = fake_results.write_machine(tmp_path / "cpu")
    common = ["--model", str(fake_server), "--prompts", "fixed:8", "--outputs", "fixed:4", "--slo", "200:50",
              "--timeout", "10"]  # fmt: skip
    for server in ("first_come", "fair"):
        arguments = [*common, "--rate", "80", "--duration", "1.5", "--scenario", "multi_tenant", "--server", server]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--out-folder", str(made / "serving" / server)])
        load_script("inference_server_load_test").main()
    arguments = [*common, "--duration", "1", "--percentile", "0.8", "--confidence", "0.8", "--loads", "0.5", "1.5"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--refinements", "0", "--out", str(made / "serving/sweep.json")])
    load_script("load_sweep").main()
    return made


def test_the_section_is_drawn(folder: Path) -> None:
    judged = results.read(folder / "judgement.json", Judgement)
    metric = "modest_ttft_p90_first_come_over_fair"
    figures = ("ratio", 1.5, 1.2, 1.9, 8.0, 4.0, 12.0, "measured")
    judged.verdicts.append(Verdict("serving/multi_tenant", metric, "regressed", "wholly below", *figures))
    results.write(folder / "judgement.json", judged)
    path = folder / "serving/fair/multi_tenant.json"
    record = results.read(path, LoadRecord)
    record.runs[0].valid, record.runs[0].invalid_reason = False, f"late {fake_results.HOSTILE}"
    results.write(path, record)
    machine = collect(folder)
    assert machine.serving
    assert len(machine.serving.tests) == 2
    page = render([machine], fake_results.provenance())
    section = page[page.index('id="m0-serving"') : page.index('id="m0-accuracy"')]
    for title in ("time to first token, multi tenant", "gap between tokens, multi tenant", "Tenants, multi tenant",
                  "Requests, multi tenant of fair", "KV cache, multi tenant of first_come", "Goodput against rate",
                  "Speed for a user against speed of the machine"):  # fmt: skip
        assert title in section, title
    assert "1.50×" in section
    assert "regressed" in section
    assert "is not valid: late" in section
    assert "<script>window.stolen" not in page
    others = page[page.index('id="m0-pairs"') : page.index('id="m0-serving"')]
    assert "modest_ttft_p90" not in others, "a verdict is shown in one place"


def test_without_load_tests_the_section_says_why(tmp_path: Path) -> None:
    made = fake_results.write_machine(tmp_path / "cpu")
    page = render([collect(made)], fake_results.provenance())
    section = page[page.index('id="m0-serving"') : page.index('id="m0-accuracy"')]
    assert "No load test" in section
    assert "<figure" not in section


def test_a_missing_table_is_said_and_a_broken_sweep_is_left_out(folder: Path) -> None:
    (folder / "serving/fair/multi_tenant.requests.parquet").unlink()
    (folder / "serving/sweep.json").write_text("{")
    machine = collect(folder)
    told = {one.what for one in machine.absent}
    assert {"Load test multi_tenant of fair: requests", "Rate sweep"} <= told
    page = render([machine], fake_results.provenance())
    assert "<figure" in page[page.index('id="m0-serving"') : page.index('id="m0-accuracy"')]
