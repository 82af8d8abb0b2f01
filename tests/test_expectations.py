"""Verdicts: by the whole interval, never from an absent or expired expectation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveproof import expectations
from serveproof.errors import UserError
from serveproof.results import Estimate, MeasureCase, MeasureRecord, Provenance, SideSummary, Verdict, encode

PROVENANCE = Provenance("c" * 40, False, "envs/cpu.txt", "0" * 64, {"python": "3.11"}, "", "snakemake", "2026-01-01")


def estimate(value: float, spread: float = 0.01, unit: str = "x") -> Estimate:
    return Estimate(value, value * (1 - spread), value * (1 + spread), unit)


def passed(speedup: float, spread: float = 0.01, **changes: Any) -> MeasureCase:
    side = SideSummary(estimate(2.0, unit="ms"), estimate(0.5, unit="of roofline"), None, 1, "")
    case = MeasureCase(
        "a", "cpu", {"n": 1}, "passed", "", speedup=estimate(speedup, spread), baseline=side, optimized=side
    )
    return msgspec.structs.replace(case, **changes)


def record(*cases: MeasureCase, **changes: Any) -> MeasureRecord:
    made = MeasureRecord("toy", "cpu", "Some CPU", "sha", "a toy", list(cases), PROVENANCE)
    return msgspec.structs.replace(made, **changes)


def judged(found: MeasureRecord, known: expectations.Expectations | None) -> Verdict:
    (verdict,) = expectations.judge_pairs([found], known, "cpu")
    return verdict


KNOWN = expectations.updated(None, "cpu", [record(passed(2.0))])


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "verdict"),
    [
        (1.9, 2.1, True, "met"),
        (1.0, 1.4, True, "regressed"),
        (2.6, 3.0, True, "too_good"),
        (1.4, 1.6, True, "inconclusive"),
        (2.4, 2.6, True, "inconclusive"),
        (1.0, 3.0, True, "inconclusive"),
        (1.0, 1.4, False, "too_good"),
        (2.6, 3.0, False, "regressed"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, higher_is_better: bool, verdict: str) -> None:
    figure = Estimate((low + high) / 2, low, high, "x")
    assert expectations.judge_interval(figure, 1.5, 2.5, higher_is_better)[0] == verdict


@given(st.floats(0.1, 10), st.floats(0.001, 5), st.floats(0.1, 10), st.floats(0.001, 5))
def test_a_verdict_mirrors_when_the_better_side_does(low: float, width: float, lower: float, span: float) -> None:
    figure = Estimate(low + width / 2, low, low + width, "x")
    mirrored = {"regressed": "too_good", "too_good": "regressed"}
    up, down = (expectations.judge_interval(figure, lower, lower + span, side)[0] for side in (True, False))
    assert down == mirrored.get(up, up)


def test_what_it_was_made_from_meets_it() -> None:
    assert judged(record(passed(2.0)), KNOWN).verdict == "met"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (record(passed(2.0), code_sha="other"), "code changed"),
        (record(passed(2.0), machine="Other CPU"), "is for Some CPU, this is Other CPU"),
        (record(passed(2.0, axes={"n": 2})), "other axes"),
    ],
)
def test_expired_never_passes(found: MeasureRecord, reason: str) -> None:
    verdict = judged(found, KNOWN)
    assert verdict.verdict == "expired"
    assert reason in verdict.reason
    assert verdict.value == 2.0
    assert expectations.exit_code([verdict]) == expectations.EXIT_NOT_JUDGED


def test_absent_never_passes() -> None:
    verdict = judged(record(passed(2.0)), None)
    assert verdict.verdict == "absent"
    assert expectations.exit_code([verdict]) == expectations.EXIT_NOT_JUDGED
    assert expectations.exit_code([]) == expectations.EXIT_NOT_JUDGED


def test_what_is_expected_and_was_not_measured_is_said() -> None:
    (verdict,) = expectations.judge_pairs([], KNOWN, "cpu")
    assert (verdict.subject, verdict.verdict) == ("toy/a", "absent")


@pytest.mark.parametrize(("status", "verdict"), [("failed", "failed"), ("error", "failed"), ("skipped", "skipped")])
def test_what_did_not_pass_has_its_status_and_reason(status: Any, verdict: str) -> None:
    found = judged(record(MeasureCase("a", "cpu", {"n": 1}, status, "because")), KNOWN)
    assert found.verdict == verdict
    assert "because" in found.reason
    assert found.value is None


def test_exit_codes() -> None:
    def code(*names: Any) -> int:
        return expectations.exit_code([Verdict("s", "m", name, "") for name in names])

    assert code("met", "skipped") == 0
    assert code("met", "inconclusive") == 3
    assert code("expired", "regressed") == 1
    assert code("too_good") == code("failed") == 1


def test_expectations_of_another_hardware_judge_nothing() -> None:
    with pytest.raises(UserError, match="'cpu' can't judge 'h200'"):
        expectations.judge_pairs([record(passed(2.0))], KNOWN, "h200")


def test_updating_keeps_what_did_not_pass_and_has_ratios_only_on_a_cpu() -> None:
    broken = record(MeasureCase("a", "cpu", {"n": 1}, "failed", "wrong"), passed(3.0, case="b"))
    found = expectations.updated(KNOWN, "cpu", [broken])
    assert found.pairs["toy"]["a"] == KNOWN.pairs["toy"]["a"]
    assert set(found.pairs["toy"]["b"].metrics) == {"speedup"}
    assert found.pairs["toy"]["b"].provenance == PROVENANCE
    on_gpu = expectations.updated(None, "h200", [record(passed(2.0))])
    assert set(on_gpu.pairs["toy"]["a"].metrics) == {"speedup", "baseline_ms", "optimized_ms"}


def test_a_noisier_figure_gets_a_wider_range() -> None:
    assert expectations.bounds(estimate(2.0, 0.001), "cuda") == pytest.approx((1.94, 2.06))
    assert expectations.bounds(estimate(2.0, 0.1), "cuda") == pytest.approx((1.6, 2.4))


def written(tmp_path: Path, change: Any) -> Path:
    content = json.loads(encode(KNOWN))
    change(content["pairs"]["toy"]["a"]["metrics"]["speedup"])
    path = tmp_path / "expectations_cpu.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("upper"), "missing required field `upper`.*mend that place"),
        (lambda e: e.update(uper=1.0), "unknown field `uper`"),
        (lambda e: e.update(lower="1"), "Expected `float`.*lower"),
        (lambda e: e.update(lower=9.0), r"pairs\.toy\.a\.metrics\.speedup: needs 0 < lower <= expected"),
    ],
)
def test_a_wrong_schema_names_file_place_and_mend(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        expectations.load(written(tmp_path, change))
    assert "expectations_cpu.json" in str(caught.value)


def test_the_shipped_files_load() -> None:
    for path in Path(expectations.__file__).parents[1].glob("expectations_*.json"):
        assert f"expectations_{expectations.load(path).hardware}.json" == path.name


def test_a_figure_that_spreads_too_much_gets_no_expectation_and_is_named() -> None:
    wide = record(passed(2.0, spread=0.4))
    found = expectations.updated(KNOWN, "cpu", [wide])
    assert judged(wide, found).verdict == "absent", "a case without a figure is told, not passed over"
    (line,) = expectations.too_wide("cpu", [wide])
    assert line.startswith("toy/a speedup: 2 [1.2, 2.8] x")
    assert expectations.too_wide("cpu", [record(passed(2.0))]) == []


def test_of_a_case_only_the_figure_that_spreads_is_left_out() -> None:
    on_gpu = expectations.updated(None, "h200", [record(passed(2.0, spread=0.4))])
    assert set(on_gpu.pairs["toy"]["a"].metrics) == {"baseline_ms", "optimized_ms"}


def test_what_the_gpu_works_in_a_call_is_judged_where_it_was_measured() -> None:
    case = passed(2.0)
    assert case.optimized
    with_busy = msgspec.structs.replace(
        case, optimized=msgspec.structs.replace(case.optimized, gpu_busy=estimate(0.5, 0.001))
    )
    known = expectations.updated(None, "h200", [record(with_busy)])
    assert set(known.pairs["toy"]["a"].metrics) == {"optimized_gpu_busy_ms"}, "the host's clock moves with the host"
    assert set(expectations.figures_of(with_busy, "cuda")) > set(known.pairs["toy"]["a"].metrics)

    def verdict(one: MeasureCase) -> Verdict:
        found = {v.metric: v for v in expectations.judge_pairs([record(one)], known, "h200")}
        return found["optimized_gpu_busy_ms"]

    slower = msgspec.structs.replace(case.optimized, gpu_busy=estimate(0.525, 0.001))
    assert verdict(with_busy).verdict == "met"
    assert verdict(msgspec.structs.replace(case, optimized=slower)).verdict == "regressed"
    missing = verdict(case)
    assert (missing.verdict, missing.reason) == ("absent", "expected, but not measured: it takes cupti-python")
