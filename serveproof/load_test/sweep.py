"""The highest rate that holds the SLO: rates in turn, each judged by MLPerf's early-stopping rule, then bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serveproof.load_records import RatePoint
from serveproof.load_test import early_stopping
from serveproof.load_test.scenarios import Scenario, Workload, plan
from serveproof.load_test.session import Target, run_once


def rate_point(
    target: Target, workload: Workload, rate_per_s: float, duration_s: float, rule: early_stopping.Rule, number: int
) -> RatePoint:
    """One rate, Poisson, judged by the early-stopping rule over the requests of its window."""
    requests = plan(Scenario(1.0), workload, rate_per_s, duration_s, run=number)
    run, _ = run_once(target, target.job(requests), duration_s, number)
    inside = run.inside()
    within = sum(one.good(target.slo) for one in inside)
    beyond = len(inside) - within
    proven: bool | None = early_stopping.proven(within, beyond, rule)
    reason = ""
    if not run.record.valid:
        proven, reason = None, run.record.invalid_reason
    elif not proven and not early_stopping.disproven(within, beyond, rule):
        needed = early_stopping.queries_needed(beyond, rule)
        proven, reason = None, f"{len(inside)} requests; with {beyond} beyond the SLO {needed} are needed to prove it"
    if proven and any(not one.steady and one.change > 0 for one in run.record.steadiness.trends):
        proven, reason = False, run.record.steadiness.reason
    return RatePoint(rate_per_s, run.record, within, beyond, proven, reason)


def sweep(
    point: Callable[[float, int], RatePoint],
    capacity_per_s: float,
    loads: Sequence[float],
    refinements: int,
    say: Callable[[RatePoint], object] = lambda _: None,
) -> tuple[float | None, list[RatePoint]]:
    """(the highest rate that was proven to hold the SLO, every point by rate): the loads as shares of the capacity in
    turn, then bisection between the highest that holds and the lowest above it that does not.

    A rate above one that was disproven never counts, were it proven by luck.
    """
    points: list[RatePoint] = []

    def take(rate_per_s: float) -> None:
        points.append(point(rate_per_s, len(points) + 1))
        say(points[-1])

    for load in sorted(loads):
        take(load * capacity_per_s)
    for _ in range(refinements):
        held = highest(points)
        failed = min(
            (one.rate_per_s for one in points if not one.proven and one.rate_per_s > (held or 0.0)), default=None
        )
        if held is None or failed is None:
            break
        take((held + failed) / 2)
    return highest(points), sorted(points, key=lambda one: one.rate_per_s)


def highest(points: Sequence[RatePoint]) -> float | None:
    """The highest proven rate below every disproven one."""
    ceiling = min((one.rate_per_s for one in points if one.proven is False), default=float("inf"))
    return max((one.rate_per_s for one in points if one.proven and one.rate_per_s < ceiling), default=None)
