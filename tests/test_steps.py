"""Steps on synthetic histories: the stated false-alarm rate holds, and a step of 5 % is found where it is."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from serveproof import steps
from tests.fake_history import commit, noise, runs

HISTORIES = 400
# between runs of one level, as a share: expectations on a CPU allow 8 %, and a step is judged by this alone
SPREAD = 0.015


def most_alarms(histories: int, rate: float) -> int:
    """More would come by chance once in a thousand such tests if the true rate were the stated one."""
    return int(binom.ppf(0.999, histories, rate))


@pytest.mark.parametrize("length", [6, 9, 14, 30, 60])
def test_a_series_without_a_step_shows_one_no_oftener_than_stated(length: int) -> None:
    generator = np.random.default_rng(length)
    alarms = sum(bool(steps.find(generator.normal(size=length))) for _ in range(HISTORIES))
    assert alarms <= most_alarms(HISTORIES, steps.ALARM_RATE)


def test_the_bound_would_catch_a_test_without_correction() -> None:
    """Places looked at without Bonferroni: the same null histories, far more alarms than the bound lets through."""
    generator = np.random.default_rng(0)
    ends = np.arange(steps.LEAST, 30 - steps.LEAST + 1)
    alarms = 0
    for _ in range(HISTORIES):
        p_values = steps._p_values(generator.normal(size=30), np.zeros_like(ends), ends, 0.0)
        alarms += bool(p_values.min() <= steps.ALARM_RATE)
    assert alarms > 2 * most_alarms(HISTORIES, steps.ALARM_RATE)


def test_a_history_of_many_figures_keeps_the_rate() -> None:
    """40 figures of 12 runs, none with a step: the rate is that of any alarm in the whole look."""
    histories, alarms = 60, 0
    for number in range(histories):
        figures = {f"toy/{one}": noise(12, SPREAD, seed=1000 * number + one) for one in range(40)}
        found, tested = steps.of_history(runs(figures, interval=0.0))
        assert tested == 40
        alarms += bool(found)
    assert alarms <= most_alarms(histories, steps.ALARM_RATE)


@pytest.mark.parametrize("heavy", ["student_t4", "laplace"])
def test_heavier_tails_change_little(heavy: str) -> None:
    """Not what the rate is stated for; still within twice of it."""
    generator = np.random.default_rng(4)
    alarms = 0
    for _ in range(HISTORIES):
        values = generator.standard_t(4, 20) if heavy == "student_t4" else generator.laplace(size=20)
        alarms += bool(steps.find(values))
    assert alarms <= most_alarms(HISTORIES, 2 * steps.ALARM_RATE)


def test_five_percent_are_found_where_they_are() -> None:
    """10 runs, then 10 that are 5 % lower, 1.5 % between runs of one level, one of 40 figures: nine of ten times."""
    found, near, histories = 0, 0, 100
    for number in range(histories):
        values = noise(20, SPREAD, seed=number)
        values[10:] *= 0.95
        cuts = steps.find(np.log(values), rate=steps.ALARM_RATE / 40)
        found += len(cuts) == 1
        near += len(cuts) == 1 and abs(cuts[0][0] - 10) <= 1
    assert found >= 90
    assert near >= 0.9 * found


def test_a_step_says_what_it_is() -> None:
    values = noise(16, 0.002, seed=1)
    values[9:] *= 0.95
    figures = {"toy/moved": values, "toy/stays": noise(16, 0.002, seed=2)}
    history = runs(figures, code_sha=lambda number: "new" if number >= 9 else "old")
    (step,), tested = steps.of_history(history)
    assert tested == 2
    assert (step.subject, step.metric, step.better) == ("toy/moved", "speedup", False)
    assert (step.commit, step.before) == (commit(9), commit(8))
    assert (step.runs_before, step.runs_after) == (9, 7)
    assert step.low_percent < -5 < step.high_percent
    assert step.low_percent < step.change_percent < step.high_percent < -4
    assert step.p_value < 0.05
    assert step.causes == ["its code"]


def test_what_is_better_follows_the_figure() -> None:
    values = noise(12, 0.002, seed=3)
    values[6:] *= 0.9
    faster = runs({"toy/a": values}, metric="optimized_ms", unit="ms", higher_is_better=False)
    (step,), _ = steps.of_history(faster)
    assert step.better


def test_an_upgrade_is_named_as_a_cause() -> None:
    values = noise(12, 0.002, seed=3)
    values[6:] *= 0.9

    def environment(number: int) -> str:
        return f"python=3.11.9 torch={'2.13.0' if number < 6 else '2.14.0'} driver=580.1"

    (step,), _ = steps.of_history(runs({"toy/a": values}, environment=environment))
    assert step.causes == ["torch 2.13.0 → 2.14.0"]
    (step,), _ = steps.of_history(runs({"toy/a": values}))
    assert step.causes == ["neither its code nor the environment: the harness, or the machine"]


def test_a_step_that_was_taken_back_is_two() -> None:
    """A slower commit in the middle of a long history, mended five runs later: one split in two would not see it."""
    values = noise(40, 0.01, seed=5)
    values[18:23] *= 0.93
    found, _ = steps.of_history(runs({"toy/a": values}))
    assert [(step.commit, step.better) for step in found] == [(commit(23), True), (commit(18), False)]


def test_two_steps_are_both_found() -> None:
    values = noise(36, 0.005, seed=6)
    values[12:] *= 1.1
    values[24:] *= 1.1
    found, _ = steps.of_history(runs({"toy/a": values}))
    assert [step.commit for step in reversed(found)] == [commit(12), commit(24)]


def test_a_change_within_the_runs_own_intervals_is_none() -> None:
    """Counted exactly the same each time, then a little else: by the runs' own intervals that says nothing."""
    values = np.array([2.0] * 8 + [2.001] * 8)
    assert steps.of_history(runs({"toy/a": values}, interval=0.05))[0] == []
    assert len(steps.of_history(runs({"toy/a": values}, interval=0.0001))[0]) == 1


def test_equal_values_have_no_step() -> None:
    assert steps.find(np.zeros(20)) == []
    assert steps.find(np.full(20, 0.1)) == []


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.floats(0, 1))
def test_whatever_the_values_a_step_leaves_runs_on_both_sides(values: list[float], floor: float) -> None:
    cuts = [cut for cut, _ in steps.find(np.array(values), floor)]
    edges = [0, *cuts, len(values)]
    assert not cuts or all(after - before >= steps.LEAST for before, after in itertools.pairwise(edges))


@given(st.integers(0, 1000), st.floats(0.1, 100.0), st.floats(-50.0, 50.0))
def test_scale_and_level_change_nothing(seed: int, scale: float, shift: float) -> None:
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(size=8), generator.normal(size=8) + generator.choice([0.0, 6.0])])
    found = [cut for cut, _ in steps.find(values)]
    assert [cut for cut, _ in steps.find(values * scale + shift)] == found


def test_what_was_not_measured_again_counts_once() -> None:
    """Ten runs that all hold the record of the third: one point."""
    history = runs({"toy/a": np.full(10, 2.0)}, record_sha="the same", measured_utc="2026-01-03T00:00:00+00:00")
    (points,) = steps.series_of(history)
    assert points.height == 1
    assert steps.of_history(history) == ([], 0)


@pytest.mark.parametrize("column", steps.SERIES)
def test_what_was_asked_differently_is_another_series(column: str) -> None:
    values = noise(12, 0.002, seed=7)
    values[6:] *= 0.8
    history = runs({"toy/a": values}, **{column: lambda number: "new" if number >= 6 else "old"})
    assert steps.of_history(history)[0] == []


def test_a_difference_in_percent_is_the_ratio_it_stands_for() -> None:
    """Perplexity against bf16 may be below it: -0.1 % has a logarithm as 0.999."""
    values = np.array([-0.1, -0.12, -0.11, -0.09, -0.1, 0.5, 0.52, 0.49, 0.51, 0.5])
    history = runs({"perplexity/int8": values}, unit="%", higher_is_better=False).with_columns(
        low=pl.col("value") - 0.01, high=pl.col("value") + 0.01
    )
    (step,), _ = steps.of_history(history)
    assert not step.better
    assert step.change_percent == pytest.approx(0.6, abs=0.02)


def test_a_figure_that_is_not_above_zero_is_not_tested_for_steps() -> None:
    history = runs({"toy/a": np.array([0.0, 1.0] * 5)})
    assert steps.of_history(history) == ([], 1)
