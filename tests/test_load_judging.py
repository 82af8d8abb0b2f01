"""Load tests are judged by their ratios on a CPU, by figures too on a GPU; what can't be judged never passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from serveproof import expectations, load_judging
from serveproof.errors import UserError
from serveproof.expectations import Expectations
from serveproof.load_records import Energy, LoadRecord, LoadRun, Slo, Steadiness
from serveproof.results import Estimate, Provenance, Verdict, encode

PROVENANCE = Provenance("c", False, "l", "s", {}, "", "x", "2026-01-01T00:00:00Z")


def run(**changes: Any) -> LoadRun:
    steady = Steadiness("steady", "", 0.0, 0, [])
    made = LoadRun(
        1, 100, 20.0, 20.0, 5.0, True, "", 0.1, 0.5, 0.5, 0.1, {"ok": 100}, 1.0, steady, None, 5.0, 5.0, 80.0,
        None, None, None, None, None, None, [], None, Energy(None, None, "no GPU"), None,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def record(server: str, scenario: str, gpus: int = 0, one: LoadRun | None = None, **figures: float) -> LoadRecord:
    estimates = {name: Estimate(value, value * 0.9, value * 1.1, "ms") for name, value in figures.items()}
    return LoadRecord(
        "cpu", "chip", server, "python -m x", "m", scenario, 5.0, 8.0, gpus, Slo(1, 1), 0, {"prompt": "fixed"},
        [one or run()], estimates, PROVENANCE,
    )  # fmt: skip


def tenants(first_come_ms: float = 3000, fair_ms: float = 300) -> list[LoadRecord]:
    return [record("first_come", "multi_tenant", modest_ttft_p90_ms=first_come_ms),
            record("fair", "multi_tenant", modest_ttft_p90_ms=fair_ms)]  # fmt: skip


def expected(records: list[LoadRecord]) -> Expectations:
    return load_judging.updated(Expectations("cpu", {}), records)


def only(verdicts: list[Verdict]) -> Verdict:
    assert len(verdicts) == 1
    return verdicts[0]


def test_what_several_ranks_measured_stays() -> None:
    """compare.py updates pairs and ranks first, then load tests."""
    ranks = {"script": {"case": expectations.CaseExpectations({}, "sha", "chip", {})}}
    assert load_judging.updated(Expectations("cpu", {}, ranks=ranks), tenants()).ranks == ranks


def test_the_ratio_of_two_servers_is_judged() -> None:
    verdict = only(load_judging.judge(tenants(), None))
    assert (verdict.subject, verdict.verdict) == ("serving/multi_tenant", "absent")
    assert verdict.value == pytest.approx(10)
    assert verdict.low
    assert verdict.high
    assert verdict.low < 9 < 11 < verdict.high
    known = expected(tenants())
    assert only(load_judging.judge(tenants(), known)).verdict == "met"
    assert only(load_judging.judge(tenants(fair_ms=3000), known)).verdict == "regressed"
    assert only(load_judging.judge(tenants(first_come_ms=60_000), known)).verdict == "too_good"


def test_the_ratio_s_interval_covers() -> None:
    found = load_judging.ratio(Estimate(10, 8, 12.5, "ms"), Estimate(5, 5, 5, "ms"))
    assert (found.value, found.low, found.high) == pytest.approx((2, 1.6, 2.5))


def test_a_figure_that_spreads_too_much_gets_no_expectation() -> None:
    wide = tenants(first_come_ms=320)
    assert expected(wide).serving == {}
    assert "spreads too much" in load_judging.too_wide(wide)[0]
    assert load_judging.too_wide(tenants()) == []
    noisy = tenants()
    noisy[0].figures["modest_ttft_p90_ms"] = Estimate(2000, 540, 7_400, "ms")
    lower = expected(noisy).serving["multi_tenant"].metrics["modest_ttft_p90_first_come_over_fair"].lower
    assert lower == 1.0
    verdict = only(load_judging.judge(tenants(first_come_ms=200), expected(noisy)))
    assert verdict.verdict == "regressed", "fair that is worse than first-come never passes"


@pytest.mark.parametrize(
    ("changes", "wanted", "told"),
    [
        ({"valid": False, "invalid_reason": "the client sent late"}, "inconclusive", "client sent late"),
        ({"answered_share": 0.95, "endings": {"ok": 95, "timeout": 5}}, "failed", "5.00 % of the requests got no"),
        ({"answered_share": 0.95, "valid": False}, "failed", "5.00 % of the requests got no"),
    ],
)
def test_a_run_that_can_not_be_trusted_never_passes(changes: dict[str, Any], wanted: str, told: str) -> None:
    bad = record("fair", "multi_tenant", one=run(**changes), modest_ttft_p90_ms=300)
    verdict = only(load_judging.judge([tenants()[0], bad], expected(tenants())))
    assert verdict.verdict == wanted
    assert told in verdict.reason
    assert expected([tenants()[0], bad]).serving == {}


def test_goodput_that_collapses_is_a_regression() -> None:
    def pair(overload: float) -> list[LoadRecord]:
        return [record("first_come", "steady", good_per_s=5), record("bounded", "overload", good_per_s=overload)]

    known = expected(pair(8))
    assert only(load_judging.judge(pair(8), known)).verdict == "met"
    assert only(load_judging.judge(pair(3.5), known)).verdict == "regressed"
    collapsed = only(load_judging.judge(pair(0.5), None))
    assert (collapsed.verdict, collapsed.value) == ("failed", pytest.approx(0.1))
    assert "collapses" in collapsed.reason
    assert expected(pair(0.5)).serving == {}, "a collapse is never expected"
    nothing = pair(5)
    nothing[1].runs[0].good_per_s = 0
    del nothing[1].figures["good_per_s"]
    verdict = only(load_judging.judge(nothing, known))
    assert (verdict.verdict, verdict.value) == ("failed", None)
    assert "collapses" in verdict.reason
    few = pair(8)
    few[1].figures["good_per_s"] = Estimate(5, 0, 9, "requests/s")
    assert only(load_judging.judge(few, known)).verdict == "inconclusive"
    moving = pair(8)
    moving[0].runs[0].steadiness.verdict = "not_steady"
    assert only(load_judging.judge(moving, known)).verdict == "inconclusive"
    moving = pair(8)
    moving[1].runs[0].steadiness.verdict = "not_steady"
    assert only(load_judging.judge(moving, known)).verdict == "met", "overload is never steady"


def test_a_steady_load_that_misses_its_slo_has_no_goodput_to_lose() -> None:
    """Seen on a CPU without units for bfloat16: overload had "collapsed", to a third of nearly nothing."""
    slow = record("first_come", "steady", one=run(good_share=Estimate(0.13, 0.06, 0.24, "")), good_per_s=0.6)
    overload = record("bounded", "overload", good_per_s=0.2)
    verdict = only(load_judging.judge([slow, overload], None))
    assert (verdict.verdict, verdict.value) == ("inconclusive", pytest.approx(1 / 3))
    assert "first_come at a steady load kept 1:1 ms in 13 % of its requests: set serving.slo" in verdict.reason
    assert expected([slow, overload]).serving == {}
    unanswered = record("bounded", "overload", one=run(answered_share=0.9), good_per_s=0.2)
    assert only(load_judging.judge([slow, unanswered], None)).verdict == "failed", "the worse of the two is told"
    kept = record("first_come", "steady", one=run(good_share=Estimate(0.6, 0.4, 0.8, "")), good_per_s=5)
    assert only(load_judging.judge([kept, overload], None)).verdict == "failed"


def test_another_workload_machine_or_no_run_never_passes() -> None:
    known = expected(tenants())
    other = tenants()
    for one in other:
        one.axes = {"prompt": "long"}
    assert only(load_judging.judge(other, known)).verdict == "expired"
    other = tenants()
    for one in other:
        one.machine = "another"
    assert only(load_judging.judge(other, known)).verdict == "expired"
    alone = [record("first_come", "steady", good_per_s=5)]
    assert only(load_judging.judge(alone, known)).verdict == "absent"
    assert load_judging.judge([], known) == [], "without load tests there is nothing to say of them"


def test_on_a_gpu_latencies_are_judged_too() -> None:
    gpu = record("first_come", "steady", gpus=1, ttft_p50_ms=20, ttft_p99_ms=40, tpot_p50_ms=5, output_tokens_per_s=900)
    verdicts = {one.metric: one for one in load_judging.judge([gpu], None)}
    assert set(verdicts) == set(load_judging.ABSOLUTE)
    slow = record("first_come", "steady", gpus=1, ttft_p50_ms=40, ttft_p99_ms=40, tpot_p50_ms=5, output_tokens_per_s=9)
    found = {one.metric: one.verdict for one in load_judging.judge([slow], expected([gpu]))}
    assert found == {"ttft_p50_ms": "regressed", "ttft_p99_ms": "met", "tpot_p50_ms": "met",
                     "output_tokens_per_s": "regressed"}  # fmt: skip


def test_the_file_is_read_back_and_an_unknown_metric_is_named(tmp_path: Path) -> None:
    path = tmp_path / "expectations_cpu.json"
    path.write_bytes(encode(expected(tenants())))
    known = expectations.load(path)
    assert only(load_judging.judge(tenants(), known)).verdict == "met"
    known.serving["multi_tenant"].metrics["speed"] = next(iter(known.serving["multi_tenant"].metrics.values()))
    with pytest.raises(UserError, match=r"serving.multi_tenant.metrics.speed: unknown metric"):
        load_judging.judge(tenants(), known)
    assert b"serving" not in encode(Expectations("cpu", {}))
