"""The DAG through a real SLURM: end to end, on two kinds of machine, GPUs where they belong, accounts."""

from __future__ import annotations

from pathlib import Path

from serveproof import results
from serveproof.cluster.usage import usages
from tests.slurm.conftest import Cluster, Submitting, with_stubs
from tests.workflow.conftest import Checkout

TWO_CPUS = {
    "cpu": {"partition": "cpu", "cpus": 2},
    "cpu_other": {"partition": "other", "cpus": 1, "exclusive": "none"},
}
GPUS = {
    "h200": {"partition": "gpu", "cpus": 1, "gpu": 1, "exclusive": "none"},
    "2x_h200": {"partition": "gpu", "cpus": 2, "gres": "gpu:2", "exclusive": "node"},
}


def test_two_kinds_of_machine_give_one_report(real: Submitting) -> None:
    done = real.run(machines=TWO_CPUS)
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


def test_gpus_go_to_who_needs_them(stubbed: Submitting) -> None:
    done = stubbed.run("results/h200/judgement.json", "results/2x_h200/judgement.json", machines=GPUS)
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


def test_with_accounting(fresh: Checkout, accounted: Cluster, tmp_path: Path) -> None:
    submitting = Submitting(with_stubs(fresh.copy(tmp_path / "checkout")), accounted)
    machines = {"cpu": {"partition": "cpu", "cpus": 1, "exclusive": "none", "account": "lab"}}
    target = "results/cpu/judgement.json"
    done = submitting.run(
        target, "--slurm-status-command", "sacct", "--slurm-efficiency-report", "--slurm-array-jobs", "measure_pair",
        machines=machines, pairs="[flash_sdp, paged_attention]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = accounted.call("sacct", "-n", "-X", "-P", "-o", "account,state,comment")
    assert {line.split("|")[0] for line in told.split()} == {"lab"}
    assert {line.split("|")[1] for line in told.split()} == {"COMPLETED"}
    assert list(submitting.checkout.folder.glob("efficiency_report_*"))
    # an array of two, whose tasks each made their own
    assert [line for line in accounted.call("sacct", "-n", "-X", "-P", "-o", "jobid").split() if line.endswith("_2")]
    assert len(list(submitting.checkout.results.glob("cpu/pairs/*/measure.json"))) == 2
    wrong = submitting.run(machines={"cpu": {**machines["cpu"], "account": "nobody"}})
    assert "hardware.cpu.account: you have no account 'nobody' on this cluster; yours are: lab" in wrong.stdout
