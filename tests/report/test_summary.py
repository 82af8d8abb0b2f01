"""The one-line answer and its counting rule."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from serveproof import accuracy_gates, results
from serveproof.report import overview, summary, words
from serveproof.report.data import Machine, collect, deltas_by_window
from serveproof.results import Judgement, VerdictName
from tests.report import fake_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results.write(tmp_path / "hardware.json", fake_results.hardware())
    return tmp_path


def add(folder: Path, name: str, speedup: float, half_width: float) -> Machine:
    case = fake_results.passed("one", speedup, 1.0, {}, False, "")
    interval = fake_results.around(speedup, "x", half_width)
    fake_results.write_pair(folder, name, [msgspec.structs.replace(case, speedup=interval)], [])
    return collect(folder)


def test_pays_only_with_the_whole_interval_above_one(folder: Path) -> None:
    add(folder, "a", 1.30, 0.02)
    add(folder, "b", 1.01, 0.02)
    machine = add(folder, "c", 0.80, 0.02)
    assert summary.headline(machine).pays == ["a"]
    assert summary.headline(machine).sentence == "1 of 3 optimizations pay here; 0 regressed."


def test_pays_only_where_it_was_verified(folder: Path) -> None:
    add(folder, "a", 1.30, 0.02)
    (folder / "pairs/a/verify.json").unlink()
    assert summary.headline(collect(folder)).pays == []


@pytest.mark.parametrize(("outcome", "pays"), [("regressed", False), ("inconclusive", True), ("met", True)])
def test_pays_only_where_its_accuracy_gate_did_not_fail(folder: Path, outcome: VerdictName, pays: bool) -> None:
    pair = "fp8_transformer_engine"
    add(folder, pair, 1.9, 0.01)
    gate = fake_results.verdict(
        accuracy_gates.PAIRS[pair][0], outcome, "beyond 2 %", metric="relative_to_bf16", unit="%"
    )
    results.write(folder / "judgement.json", Judgement("cpu", "none", 2.0, [gate]))
    machine = collect(folder)
    assert summary.headline(machine).pays == ([pair] if pays else [])
    (row,) = overview.stat_rows([machine], [{}])
    assert row.tone == ("good" if pays else "bad"), "fast but wrong is not a win"
    assert [cell.badge.sign for cell in row.cells if cell.badge][1] == ("✓" if pays else "✗")


@pytest.mark.parametrize(
    ("method", "bound_by", "told"),
    [
        ("cupti", "launches", "bytes (eager: launches)"),
        ("host_clock", "launches", "launches"),
        ("cupti", "bytes", "bytes"),
        ("cupti", "", "bytes"),
    ],
)
def test_launches_do_not_bind_a_time_that_they_are_not_in(method: str, bound_by: str, told: str) -> None:
    """97 % of the memory's bandwidth and "bound by launches" stood in one row."""
    case = fake_results.passed("one", 2.0, 1.0, {}, False, "")
    assert case.timing is not None
    assert case.optimized is not None
    timing = msgspec.structs.replace(case.timing, method=method)
    side = msgspec.structs.replace(case.optimized, bound_by=bound_by)
    assert words.bound(msgspec.structs.replace(case, timing=timing), side) == told


@pytest.mark.parametrize(
    ("speedup", "others", "told"),
    [
        ("met", {"optimized_ms": "met"}, "speedup"),
        ("met", {"baseline_ms": "met", "optimized_ms": "regressed"}, "optimized_ms"),
        (None, {"baseline_gpu_busy_ms": "met", "optimized_gpu_busy_ms": "met"}, "optimized_gpu_busy_ms"),
        (None, {"baseline_gpu_busy_ms": "inconclusive", "optimized_gpu_busy_ms": "met"}, "baseline_gpu_busy_ms"),
        (None, {}, None),
    ],
)
def test_a_case_tells_the_verdict_that_asks_most_for_a_look(
    folder: Path, speedup: VerdictName | None, others: dict[str, VerdictName], told: str | None
) -> None:
    """A slower optimized side must not hide behind a speedup that passed, or that has no expectation."""
    judged = {"speedup": speedup, **others}
    found = [fake_results.verdict("a/one", one, "why", metric=name) for name, one in judged.items() if one]
    results.write(folder / "judgement.json", Judgement("cpu", "none", 2.0, found))
    machine = add(folder, "a", 1.3, 0.02)
    (row,) = summary.case_rows(machine)
    assert (row.told.metric if row.told else None) == told
    listed = {one.metric for one in summary.other_verdicts(machine)}
    assert listed == {one.metric for one in found} - ({"speedup"} if told == "speedup" else set()), "none is lost"


def test_a_pair_is_called_by_what_asks_most_for_a_look(folder: Path) -> None:
    machine = collect(fake_results.write_machine(folder))
    found = {pair: summary.called(rows) for pair, rows in summary.rows_by_pair(machine).items()}
    assert found == {
        "flash_sdp": "regressed",
        "flashinfer_block_sparse": "skipped",
        "paged_attention": "too_good",
        "piece_graphs": "error",
        "regional_compilation": "failed",
    }
    assert set(summary.URGENT_FIRST) == set(words.BADGES)


def test_counts_skipped_failed_and_regressed_pairs(folder: Path) -> None:
    fake_results.write_pair(folder, "s", [fake_results.broken("one", "skipped", "no GPU")], [])
    fake_results.write_pair(folder, "e", [fake_results.broken("one", "error", "trace")], [])
    add(folder, "r", 1.2, 0.01)
    verdict = fake_results.verdict("r/one", "regressed", "below")
    results.write(folder / "judgement.json", Judgement("cpu", "none", 2.0, [verdict]))
    headline = summary.headline(collect(folder))
    assert headline.sentence == "1 of 3 optimizations pay here; 1 regressed; 1 failed; 1 skipped."


def test_one_pair_that_pays_is_singular(folder: Path) -> None:
    assert summary.headline(add(folder, "a", 2.0, 0.01)).sentence == "1 of 1 optimization pays here; 0 regressed."


def test_verdicts_of_cases_that_did_not_run_are_not_lost(tmp_path: Path) -> None:
    machine = collect(fake_results.write_machine(tmp_path / "cpu"))
    others = summary.other_verdicts(machine)
    assert [(one.subject, one.metric) for one in others] == [
        ("flash_sdp/full", "peak_memory_ratio"),
        ("flash_sdp/gpu", "speedup"),
    ]


def test_window_deltas_are_paired_with_fp32(tmp_path: Path) -> None:
    machine = collect(fake_results.write_machine(tmp_path / "cpu"))
    means = dict(machine.window_deltas.group_by("precision").mean().select("precision", "delta_nats").iter_rows())
    assert set(means) == {"bf16", "fp8_tensor", "fp8_channel", "int8_channel"}
    assert means["fp8_tensor"] == pytest.approx(0.0121, abs=0.006)
    assert deltas_by_window(machine.window_deltas.clear().rename({"delta_nats": "nll_nats"})).is_empty()
