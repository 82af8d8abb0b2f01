"""Two runs beside each other: by the interval of their ratio, and never when they were asked different things."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveproof import history, run_comparison
from serveproof.errors import UserError
from serveproof.run_comparison import Change
from tests.fake_history import runs
from tests.test_history import H200


def run(value: float, interval: float = 0.004, **changes: Any) -> pl.DataFrame:
    return runs({"toy/a": np.array([value])}, interval, **changes)


def only(old: pl.DataFrame, new: pl.DataFrame) -> Change:
    (change,) = run_comparison.compare(old, new, gate_percent=2.0)
    return change


@pytest.mark.parametrize(
    ("new", "interval", "outcome", "code"),
    [
        (2.0, 0.004, "same", 0),
        (2.1, 0.004, "same", 0),  # 5 % on a CPU are within what expectations allow
        (2.4, 0.004, "better", 0),
        (1.6, 0.004, "worse", 1),
        (1.85, 0.004, "inconclusive", 3),
        (2.0, 0.2, "inconclusive", 3),
    ],
)
def test_the_whole_interval_decides(new: float, interval: float, outcome: str, code: int) -> None:
    change = only(run(2.0), run(new, interval))
    assert change.outcome == outcome
    assert run_comparison.exit_code([change]) == code
    assert change.ratio
    assert change.ratio.low < new / 2.0 < change.ratio.high


def test_of_times_less_is_better() -> None:
    times = {"metric": "optimized_ms", "unit": "ms", "higher_is_better": False}
    assert only(run(2.0, **times), run(1.5, **times)).outcome == "better"


def test_a_gpus_margin_is_smaller() -> None:
    gpu = {"hardware": "h200"}
    assert only(run(2.0, **gpu), run(1.9, **gpu)).outcome == "worse"
    assert only(run(2.0), run(1.9)).outcome != "worse"


def test_perplexity_is_held_against_the_gate() -> None:
    accuracy = {"metric": "relative_to_bf16", "unit": "%", "higher_is_better": False}
    assert only(run(0.1, **accuracy), run(0.5, **accuracy)).outcome == "same"
    worse = only(run(0.1, **accuracy), run(4.0, **accuracy))
    assert (worse.outcome, worse.old, worse.new) == ("worse", 0.1, 4.0)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("machine", "other machine: one, then two"),
        ("axes", "other axes"),
        ("setting", "other rounds, threads or clock"),
    ],
)
def test_what_was_asked_differently_is_not_compared(column: str, told: str) -> None:
    change = only(run(2.0, **{column: "one"}), run(1.0, **{column: "two"}))
    assert (change.outcome, change.ratio) == ("not_compared", None)
    assert told in change.reason
    assert run_comparison.exit_code([change]) == 3


def test_changed_code_is_told_and_compared() -> None:
    change = only(run(2.0, code_sha="old"), run(1.0, code_sha="new"))
    assert change.outcome == "worse"
    assert change.reason.endswith("its code changed")


def failed(status: str) -> pl.DataFrame:
    blank = [pl.lit(None, pl.Float64).alias(name) for name in ("value", "low", "high")]
    return run(1.0, status=status).with_columns(blank)


def test_what_fails_now_is_code_1_and_what_is_skipped_can_not_be_told() -> None:
    assert only(run(2.0), failed("failed")).outcome == "failed"
    assert run_comparison.exit_code([only(run(2.0), failed("error"))]) == 1
    assert only(run(2.0), failed("skipped")).outcome == "not_compared"
    assert only(failed("failed"), run(2.0)).outcome == "not_compared"
    assert run_comparison.compare(failed("skipped"), failed("skipped"), 2.0) == []


def test_a_pair_that_fails_now_fails_once_a_figure() -> None:
    """Passed, a case has three figures on a GPU; failed, one row without any."""
    three = pl.concat([run(2.0, metric=name) for name in ("speedup", "baseline_ms", "optimized_ms")])
    changes = run_comparison.compare(three, failed("error"), 2.0)
    assert sorted(change.metric for change in changes) == ["baseline_ms", "optimized_ms", "speedup"]
    assert {change.outcome for change in changes} == {"failed"}


def test_what_only_one_run_has_is_said() -> None:
    other = runs({"toy/b": np.array([1.0])})
    reasons = {change.subject: change.reason for change in run_comparison.compare(run(2.0), other, 2.0)}
    assert reasons == {"toy/a": "not measured in the newer run", "toy/b": "not measured in the older run"}


def test_two_kinds_of_machine_are_never_compared() -> None:
    with pytest.raises(UserError, match="'cpu' and of 'h200'"):
        run_comparison.compare(run(2.0), run(2.0, hardware="h200"), 2.0)


def test_published_records_against_themselves_are_the_same() -> None:
    whole = history.of_folder(H200)
    changes = run_comparison.compare(whole, whole, 2.0)
    assert {change.outcome for change in changes if change.ratio} <= {"same", "inconclusive"}
    assert len(changes) > 30
    assert "same" in run_comparison.table(changes)


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0), st.floats(0.0001, 0.05))
def test_turned_round_better_is_worse(old: float, new: float, interval: float) -> None:
    turned = {"better": "worse", "worse": "better"}
    one = only(run(old, interval), run(new, interval)).outcome
    other = only(run(new, interval), run(old, interval)).outcome
    assert turned.get(one, one) == other
