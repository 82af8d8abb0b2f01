"""Verdicts on several ranks: what does not hold is failed, and figures are judged where they mean something."""

from __future__ import annotations

from typing import Any

import msgspec

from serveproof import expectations
from serveproof.distributed_records import RankedCase, RankedFigure, RankedRecord
from serveproof.results import Estimate
from tests.test_expectations import PROVENANCE

SCRIPT = "disaggregated_serving"


def case(value: float = 3.0, status: str = "passed", **changes: Any) -> RankedCase:
    speedup = RankedFigure(Estimate(value, 0.99 * value, 1.01 * value, "x"), True, ratio=True)
    time = RankedFigure(Estimate(5.0, 4.9, 5.1, "us"), False)
    figures = {"speedup": speedup, "transfer_us": time} if status == "passed" else {}
    made = RankedCase("hand_over_512", {"n": 1}, status, "why", figures)  # type: ignore[arg-type]
    return msgspec.structs.replace(made, **changes)


def record(*cases: RankedCase, device: str = "cpu") -> RankedRecord:
    return RankedRecord(
        SCRIPT, "cpu", "Some CPU", device, 2, 1, "gloo", "sha", {}, "hash", list(cases), provenance=PROVENANCE
    )


def told(found: RankedRecord, known: expectations.Expectations | None) -> dict[str, str]:
    return {one.metric: one.verdict for one in expectations.judge_ranks([found], known)}


def test_what_does_not_hold_is_failed_and_what_is_skipped_says_why() -> None:
    assert told(record(case(status="failed")), None) == {"holds": "failed"}
    assert told(record(case(status="error")), None) == {"holds": "failed"}
    (skipped,) = expectations.judge_ranks([record(case(status="skipped"))], None)
    assert (skipped.verdict, skipped.reason) == ("skipped", "why")


def test_on_a_cpu_ratios_alone_are_judged() -> None:
    known = expectations.updated(None, "cpu", [], [record(case())])
    assert known.ranks[SCRIPT]["hand_over_512"].metrics.keys() == {"speedup"}
    assert told(record(case()), known) == {"holds": "met", "speedup": "met"}
    assert told(record(case(1.5)), known) == {"holds": "met", "speedup": "regressed"}
    assert told(record(case(9.0)), known) == {"holds": "met", "speedup": "too_good"}
    assert told(record(case()), None) == {"holds": "met", "speedup": "absent"}


def test_on_gpus_times_are_judged_too() -> None:
    known = expectations.updated(None, "2x_h200", [], [record(case(), device="cuda")])
    assert told(record(case(), device="cuda"), known) == {"holds": "met", "speedup": "met", "transfer_us": "met"}


def test_other_axes_machines_and_code_expire() -> None:
    known = expectations.updated(None, "cpu", [], [record(case())])
    assert told(record(case(axes={"n": 2})), known)["speedup"] == "expired"
    for change in ({"machine": "Another"}, {"code_sha": "other"}):
        assert told(msgspec.structs.replace(record(case()), **change), known)["speedup"] == "expired"


def test_what_vanished_is_a_verdict() -> None:
    known = expectations.updated(None, "cpu", [], [record(case())])
    (gone,) = expectations.judge_ranks([], known)
    assert (gone.subject, gone.verdict) == (f"{SCRIPT}/hand_over_512", "absent")


def test_a_figure_that_spreads_too_much_gets_no_expectation() -> None:
    wide = case()
    wide.figures["speedup"].estimate = Estimate(3.0, 1.0, 9.0, "x")
    assert expectations.updated(None, "cpu", [], [record(wide)]).ranks.get(SCRIPT, {}) == {}
    known = expectations.updated(None, "cpu", [], [record(case())])
    assert expectations.updated(known, "cpu", [], [record(case(status="failed"))]).ranks == known.ranks
