"""expectations_b200.json holds public records: sourced, marked as not ours, and never a gate for another chip."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serveproof import expectations
from serveproof.errors import UserError
from serveproof.expectations import CaseExpectations, Expectation, Expectations

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = "not measured by us"


@pytest.fixture(scope="module")
def published() -> Expectations:
    return expectations.load(ROOT / "expectations_b200.json")


def cases(published: Expectations) -> list[CaseExpectations]:
    return [case for found in published.pairs.values() for case in found.values()]


def entries(published: Expectations) -> list[Expectation]:
    return [entry for case in cases(published) for entry in case.metrics.values()]


def test_every_record_is_there(published: Expectations) -> None:
    assert published.hardware == "b200"
    assert set(published.pairs) == {
        "flash_sdp",
        "flashinfer_block_sparse",
        "regional_compilation",
        "nvfp4_mlp",
        "runtime_scheduler",
        "dense_attention",
    }
    figures = set(expectations.METRICS) - set(expectations.GPU_BUSY_METRICS)
    assert all(set(case.metrics) == figures for case in cases(published))


def test_every_figure_names_its_source_and_says_that_it_is_not_ours(published: Expectations) -> None:
    for entry in entries(published):
        assert entry.source != expectations.MEASURED
        for part in ("cfregly/ai-performance-engineering", "expectations_b200.json", "171b2f3b", "2026-03-21"):
            assert part in entry.source
        assert entry.note.startswith(NOT_OURS)


def test_what_we_did_not_measure_has_no_code_and_no_provenance(published: Expectations) -> None:
    for case in cases(published):
        assert case.code_sha is None
        assert case.provenance is None
        assert case.machine == "NVIDIA B200"
        assert case.axes


def test_ranges_contain_the_figure_and_say_where_they_come_from(published: Expectations) -> None:
    for entry in entries(published):
        assert entry.lower <= entry.expected <= entry.upper
        assert entry.lower < entry.upper
        assert "spread of the published runs" in entry.note or "+-10 %" in entry.note


def test_speedups_are_the_ratio_of_the_times_beside_them(published: Expectations) -> None:
    for case in cases(published):
        ratio = case.metrics["baseline_ms"].expected / case.metrics["optimized_ms"].expected
        assert case.metrics["speedup"].expected == pytest.approx(ratio, rel=0.01)


def test_flash_sdp_has_exactly_the_axes_of_the_reference_tier(published: Expectations) -> None:
    workloads = yaml.safe_load((ROOT / "config/workloads.yaml").read_text())
    reference = {case["case"]: case["axes"] for case in workloads["flash_sdp"]["reference"]}
    assert {name: case.axes for name, case in published.pairs["flash_sdp"].items()} == reference


@pytest.mark.parametrize("hardware", ["h200", "cpu", "2x_b200"])
def test_they_judge_no_other_hardware(published: Expectations, hardware: str) -> None:
    with pytest.raises(UserError, match="each hardware has its own file"):
        expectations.judge_pairs([], published, hardware)
