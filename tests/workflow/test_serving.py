"""Load tests in the DAG: planned by the config, run against a server that computes nothing, drawn and judged."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from serveproof.load_records import LoadRecord, SweepRecord
from serveproof.results import Judgement, read
from tests.workflow.conftest import Checkout, error_line

TRIES = 4
ASKED = {
    "pairs": "[flash_sdp]",
    "serving": "{mode: load_test, duration_s: 2, slo: '2000:200', prompts: 'fixed:8', outputs: 'fixed:4', "
    "servers: {multi_tenant: [first_come, fair], steady: [first_come], overload: [bounded], bursty: [], "
    "long_prompts: []}, "
    "sweep: {loads: [0.5], refinements: 0, percentile: 0.8, confidence: 0.8}}",
}


def with_fake_server(checkout: Checkout) -> None:
    """The null server stands in for serveproof.server: this is about the DAG. Nothing is expected of it."""
    folder = checkout.folder / "serveproof" / "server"
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text('"""Stands in for the server."""\n')
    (folder / "__main__.py").write_text("from tests.load_test.fake_server import main\n\nmain()\n")
    (checkout.folder / "expectations_cpu.json").unlink()


def made_calmly(checkout: Checkout, folder: Path) -> None:
    """The whole DAG; a load test whose client says of itself that it was late, as on a busy machine, is made again."""
    for _ in range(TRIES):
        done = checkout.run("--cores", "all", **ASKED)
        assert done.returncode == 0, done.stdout
        files = [file for file in folder.glob("*/*.json") if not all(run.valid for run in read(file, LoadRecord).runs)]
        if not files:
            return
        for file in files:
            file.unlink()
    pytest.fail(f"the client was late {TRIES} times: {files}")


@pytest.mark.timed(tries=1)
def test_load_tests_are_made_judged_and_drawn(checkout: Checkout) -> None:
    with_fake_server(checkout)
    folder = checkout.results / "cpu" / "serving"
    made_calmly(checkout, folder)
    sweep = read(folder / "sweep.json", SweepRecord)
    assert sweep.points
    record = read(folder / "fair" / "multi_tenant.json", LoadRecord)
    assert record.capacity_per_s == sweep.capacity_per_s
    assert record.runs[0].endings["ok"] == record.runs[0].requests
    assert pl.read_parquet(folder / "fair" / "multi_tenant.requests.parquet").height == record.runs[0].requests
    verdicts = {one.subject: one for one in read(checkout.results / "cpu/judgement.json", Judgement).verdicts}
    assert verdicts["serving/multi_tenant"].verdict == "absent"
    assert (verdicts["serving/overload/bounded"].value or 0) > 0.5
    assert (verdicts["serving/multi_tenant"].value or 0) > 1
    assert "time to first token, multi tenant" in (checkout.folder / "reports/index.html").read_text()
    assert checkout.planned(**ASKED) == []
    checkout.append("serveproof/load_test/client.py", "\n# changed\n")
    assert {line.split()[0] for line in checkout.planned(**ASKED)} == {
        "all",
        "history",
        "judge",
        "load_sweep",
        "load_test",
        "report",
    }


def test_a_wrong_setting_is_one_line(smoke: Checkout) -> None:
    assert "serving.mode" in error_line(smoke.run("--dry-run", serving="{mode: on}"))
    assert "serving.prompts" in error_line(smoke.run("--dry-run", serving="{prompts: 'normal:3'}"))
    assert "serving.servers" in error_line(smoke.run("--dry-run", serving="{servers: {calm: [fair]}}"))
