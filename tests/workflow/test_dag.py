"""The DAG end to end on a tiny model, and what it runs again after which change."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from serveproof import results
from serveproof.accuracy_records import PerplexityRecord
from tests.workflow.conftest import Checkout, Done

RECORDS = {
    "cpu/hardware.json": results.HardwareRecord,
    "cpu/pairs/flash_sdp/verify.json": results.VerifyRecord,
    "cpu/pairs/flash_sdp/measure.json": results.MeasureRecord,
    "cpu/pairs/paged_attention/verify.json": results.VerifyRecord,
    "cpu/pairs/paged_attention/measure.json": results.MeasureRecord,
    "cpu/perplexity.json": PerplexityRecord,
    "cpu/judgement.json": results.Judgement,
    "inputs/model/model.json": results.ModelRecord,
    "inputs/text.json": results.TextRecord,
}
PROCESSES, ROUNDS = 2, 3  # as config/smoke.yaml has it


def test_the_whole_dag_runs(smoke_run: tuple[Checkout, Done]) -> None:
    checkout, done = smoke_run
    assert done.returncode == 0, done.stdout
    assert (checkout.folder / "reports" / "index.html").read_text().startswith("<!doctype html>")
    for name, kind in RECORDS.items():
        results.read(checkout.results / name, kind)


@pytest.mark.parametrize("pair", ["flash_sdp", "paged_attention"])
def test_every_case_passed_and_has_its_samples(smoke: Checkout, pair: str) -> None:
    folder = smoke.results / "cpu" / "pairs" / pair
    cases = results.read(folder / "measure.json", results.MeasureRecord).cases
    assert cases
    assert [(case.case, case.status, case.reason) for case in cases] == [(case.case, "passed", "") for case in cases]
    samples = pl.read_parquet(folder / "samples.parquet")
    # A B B A: four times a round, two a side; a disturbed round is thrown away whole, and the record counts it.
    for case in cases:
        assert case.timing
        rows = samples.filter(pl.col("case") == case.case)
        assert rows.height == 4 * (PROCESSES * ROUNDS - case.timing.discarded_rounds)
        assert rows["side"].value_counts()["count"].n_unique() == 1


def test_accuracy_has_every_precision_of_the_config(smoke: Checkout) -> None:
    record = results.read(smoke.results / "cpu" / "perplexity.json", PerplexityRecord)
    assert [one.precision for one in record.precisions] == ["fp32", "bf16", "int8_channel"]
    tokens = pl.read_parquet(smoke.results / "cpu" / "perplexity.parquet")
    assert tokens.height == 3 * (record.tokens - 1)


def test_nothing_runs_when_nothing_changed(smoke: Checkout) -> None:
    done = smoke.run("--cores", "all")
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in done.stdout
    # Without --cores too: the number of cores is part of how a time was taken.
    assert smoke.planned() == []


def test_the_readme_changes_nothing(checkout: Checkout) -> None:
    checkout.append("README.md", "One more line.\n")
    assert checkout.planned() == []


CHANGES = {
    "kernels/optimized_flash_sdp.py": [
        *("verify_pair flash_sdp", "measure_pair flash_sdp", "judge", "history", "report"),
    ],
    "kernels/baseline_paged_attention.py": [
        *("verify_pair paged_attention", "measure_pair paged_attention", "judge", "history", "report"),
    ],
    "serveproof/report/charts.py": ["report"],
    "serveproof/report/templates/base.css": ["report"],
    "serveproof/expectations.py": ["judge", "history", "report"],
    "serveproof/steps.py": ["history", "report"],
    "serveproof/bench/perplexity.py": ["perplexity_eval", "judge", "history", "report"],
}


@pytest.mark.parametrize("file", CHANGES)
def test_a_change_reruns_what_depends_on_it_and_nothing_else(checkout: Checkout, file: str) -> None:
    checkout.append(file, "\n# changed\n" if file.endswith(".py") else "\n")
    assert checkout.planned() == sorted([*CHANGES[file], "all"])


@pytest.mark.parametrize(
    ("setting", "jobs"),
    [
        ({"accuracy_gate": "{max_increase_percent: 3.5}"}, ["judge", "report"]),
        ({"perplexity": "{tokens: 600}"}, ["perplexity_eval", "judge", "history", "report"]),
    ],
)
def test_a_setting_reruns_what_depends_on_it(smoke: Checkout, setting: dict[str, str], jobs: list[str]) -> None:
    assert smoke.planned(**setting) == sorted([*jobs, "all"])


def test_expectations_that_appear_are_judged(checkout: Checkout) -> None:
    assert checkout.compare("--update-expectations").returncode in (0, 3)
    assert checkout.planned() == ["all", "judge", "report"]


def test_parsing_never_imports_torch(smoke: Checkout, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported at parse time')\n")
    done = smoke.call(smoke.snakemake("--dry-run"), PYTHONPATH=f"{tmp_path}:{smoke.folder}")
    assert done.returncode == 0, done.stdout
    trapped = smoke.call([sys.executable, "-c", "import torch"], PYTHONPATH=f"{tmp_path}:{smoke.folder}")
    assert "imported at parse time" in trapped.stdout


def test_lint_is_clean(smoke: Checkout) -> None:
    done = smoke.call([sys.executable, "-m", "snakemake", "--lint"])
    assert done.returncode == 0, done.stdout


def test_rulegraph_is_drawn(smoke: Checkout) -> None:
    done = smoke.run("--rulegraph")
    assert done.returncode == 0, done.stdout
    assert "digraph snakemake_dag" in done.stdout
    for rule in ("hardware", "verify_pair", "measure_pair", "perplexity_eval", "judge", "history", "report"):
        assert f'label = "{rule}"' in done.stdout
