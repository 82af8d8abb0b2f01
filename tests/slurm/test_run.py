"""The DAG through a real SLURM: end to end, on two kinds of machine, GPUs where they belong, accounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from serveproof import results
from serveproof.cluster.usage import usages
from tests.slurm.conftest import Cluster, Submitting, with_stubs
from tests.workflow.conftest import Checkout, Done

TWO_CPUS = {
    "cpu": {"partition": "cpu", "cpus": 2},
    "cpu_other": {"partition": "other", "cpus": 1, "exclusive": "none"},
}
GPUS = {
    "h200": {"partition": "gpu", "cpus": 1, "gpu": 1, "exclusive": "none"},
    "2x_h200": {"partition": "gpu", "cpus": 2, "gres": "gpu:2", "exclusive": "node"},
}
ACCOUNT = {"cpu": {"partition": "cpu", "cpus": 1, "exclusive": "none", "account": "lab"}}
WITH_ACCOUNTING = ("--slurm-status-command", "sacct", "--slurm-efficiency-report", "--slurm-array-jobs", "measure_pair")
TWO_PAIRS = "[flash_sdp, paged_attention]"
Started = tuple[Submitting, Future[Done]]


@pytest.fixture(scope="module")
def runs(
    fresh: Checkout, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Started]]:
    """The runs of this file, at once: each of them mostly waits for the plugin's next look at its jobs."""
    with ThreadPoolExecutor(3) as pool:

        def start(name: str, where: Cluster, *arguments: str, stubs: bool = True, **more: object) -> Started:
            copied = fresh.copy(tmp_path_factory.mktemp(name) / "checkout")
            one = Submitting(with_stubs(copied) if stubs else copied, where)
            return one, pool.submit(one.run, *arguments, **more)  # type: ignore[arg-type]

        plain = ("--slurm-status-command", "squeue", "--slurm-no-account")
        found = {
            "two kinds": start("kinds", cluster, *plain, stubs=False, machines=TWO_CPUS),
            "gpus": start("gpus", cluster, *(f"results/{key}/judgement.json" for key in GPUS), machines=GPUS),
        }
        with suppress(pytest.skip.Exception):  # where it can't be had, its own test says so
            where = request.getfixturevalue("accounted")
            target = "results/cpu/judgement.json"
            found["accounted"] = start("lab", where, target, *WITH_ACCOUNTING, machines=ACCOUNT, pairs=TWO_PAIRS)
        yield found


def test_two_kinds_of_machine_give_one_report(runs: dict[str, Started]) -> None:
    real, running = runs["two kinds"]
    done = running.result()
    assert done.returncode == 0, done.stdout
    folder = real.checkout.results
    for key, partition, alone in (("cpu", "cpu", "node"), ("cpu_other", "other", "none")):
        measured = results.read(folder / key / "pairs" / "flash_sdp" / "measure.json", results.MeasureRecord)
        assert [case.status for case in measured.cases] == ["passed"] * len(measured.cases)
        assert measured.hardware == key
        assert measured.placement
        assert (measured.placement.partition, measured.placement.alone) == (partition, alone)
        assert measured.provenance.command.startswith("snakemake --profile profiles/slurm")
        noted = {one.job: one for one in usages(folder / key / "logs")}
        assert {"hardware", "verify_flash_sdp", "measure_flash_sdp", "perplexity_eval", "judge"} <= set(noted)
        assert noted["judge"].placement is None  # a local rule
        verified = noted["verify_flash_sdp"].placement
        assert verified
        assert verified.memory_bytes
        assert 0 < noted["verify_flash_sdp"].peak_bytes < verified.memory_bytes
    page = (real.checkout.folder / "reports" / "index.html").read_text()
    assert "cpu_other" in page
    # Nothing is to be done again, and the plugin's logs are found by rule and wildcards.
    again = real.run("--dry-run", machines=TWO_CPUS)
    assert "Nothing to be done" in again.stdout
    logs = real.checkout.folder / ".snakemake" / "slurm_logs"
    assert list(logs.glob("rule_measure_pair/cpu_other_flash_sdp/*.log"))


def test_gpus_go_to_who_needs_them(runs: dict[str, Started]) -> None:
    stubbed, running = runs["gpus"]
    done = running.result()
    assert done.returncode == 0, done.stdout
    notes = stubbed.notes()
    for key, visible in (("h200", 1), ("2x_h200", 2)):
        for log in ("hardware", "verify_flash_sdp", "measure_flash_sdp", "perplexity_eval"):
            one = notes[f"{key}/logs/{log}"]
            assert one["SLURM_JOB_PARTITION"] == "gpu"
            assert len(one["CUDA_VISIBLE_DEVICES"].split(",")) == visible, (key, log, one)
        assert notes[f"{key}/logs/judge"]["SLURM_JOB_ID"] == ""
    for log in ("prepare_model", "prepare_text", "tokenize_text"):
        assert notes[f"inputs/logs/{log}"]["CUDA_VISIBLE_DEVICES"] == ""
    # one job for the three of a chain
    assert len({notes[f"inputs/logs/{log}"]["SLURM_JOB_ID"] for log in ("prepare_model", "tokenize_text")}) == 1


def accounted_for(submitting: Submitting, done: Done) -> None:
    """Every job that ran from there was lab's and was done, among them an array of two whose tasks each made their
    own; the plugin's efficiency report is there."""
    assert done.returncode == 0, done.stdout
    accounted = submitting.cluster
    told = accounted.call("sacct", "-n", "-X", "-P", "-o", "account,state,comment")
    assert {line.split("|")[0] for line in told.split()} == {"lab"}
    assert {line.split("|")[1] for line in told.split()} == {"COMPLETED"}
    assert list(submitting.checkout.folder.glob("efficiency_report_*"))
    assert [line for line in accounted.call("sacct", "-n", "-X", "-P", "-o", "jobid").split() if line.endswith("_2")]
    assert len(list(submitting.checkout.results.glob("cpu/pairs/*/measure.json"))) == 2


def test_with_accounting(runs: dict[str, Started], accounted: Cluster) -> None:
    submitting, running = runs["accounted"]
    assert submitting.cluster == accounted
    accounted_for(submitting, running.result())
    wrong = submitting.run(machines={"cpu": {**ACCOUNT["cpu"], "account": "nobody"}})
    assert "hardware.cpu.account: you have no account 'nobody' on this cluster; yours are: lab" in wrong.stdout


@pytest.mark.skipif("SERVEPROOF_LONG" not in os.environ, reason="takes minutes: `make test-long` runs it")
def test_the_smoke_dag_with_accounting(fresh: Checkout, accounted: Cluster, tmp_path: Path) -> None:
    submitting = Submitting(fresh.copy(tmp_path / "checkout"), accounted)
    accounted_for(submitting, submitting.run(*WITH_ACCOUNTING, machines=ACCOUNT, pairs=TWO_PAIRS))
    assert "flash_sdp" in (submitting.checkout.folder / "reports" / "index.html").read_text()
