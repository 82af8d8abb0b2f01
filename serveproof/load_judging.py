"""Load tests against expectations: which figures are compared, and verdicts by interval.

On a shared CPU only ratios of two servers on the same machine mean anything: fair against first-come, chunked against
whole prompts, goodput at twice the capacity against goodput below it. On a GPU also latencies and tokens per second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import msgspec

from serveproof.errors import UserError
from serveproof.expectations import (
    MEASURED,
    CaseExpectations,
    Expectation,
    Expectations,
    bounds,
    is_wide,
    judge_interval,
)
from serveproof.load_records import LoadRecord
from serveproof.results import Estimate, Verdict, VerdictName

# scenario -> (metric, its figure, the server on top, the server below): above 1 the server below is better
RATIOS = {
    "multi_tenant": ("modest_ttft_p90_first_come_over_fair", "modest_ttft_p90_ms", "first_come", "fair"),
    "long_prompts": ("others_stall_p90_whole_over_chunked", "others_stall_p90_ms", "whole", "chunked"),
}
OVERLOAD = "goodput_overload_over_steady"
# At twice what it can carry a server must still serve half of what it serves below it, whatever was measured before.
COLLAPSE = 0.5
# A steady load that keeps its SLO in fewer of its requests than this has no goodput to hold an overload against.
KEPT = 0.5
# An expectation's lower bound never lies below these: fair, or chunked, that is no better than the other pays nothing.
FLOORS = {**{metric: 1.0 for metric, *_ in RATIOS.values()}, OVERLOAD: COLLAPSE}
# of each server and scenario, on a GPU -> is higher better
ABSOLUTE = {"ttft_p50_ms": False, "ttft_p99_ms": False, "tpot_p50_ms": False, "output_tokens_per_s": True}
METRICS = {**{name: True for name, *_ in RATIOS.values()}, OVERLOAD: True, **ABSOLUTE}


# Their figures mean something of a steady run only; overload and a greedy tenant are never steady.
STEADY = ("steady", "long_prompts")
Fault = tuple[VerdictName, str]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure to judge: of what, with which axes, on which machine. fault: the verdict that it gets whatever is
    expected, and why."""

    subject: str
    metric: str
    estimate: Estimate | None
    record: LoadRecord
    fault: Fault | None = None


def ratio(top: Estimate, below: Estimate) -> Estimate:
    """top / below of two independent, positive figures: their logarithms' half-widths add in quadrature."""
    value = math.log(top.value / below.value)
    half = math.hypot(*(math.log(one.high / one.low) / 2 for one in (top, below)))
    confidence = min(top.confidence, below.confidence)
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half), "ratio", confidence)


def fault_of(record: LoadRecord) -> Fault | None:
    """failed: a request got no answer. inconclusive: the client was late, or what must be steady was not."""
    for run in record.runs:
        place = f"{record.scenario} of {record.server}, run {run.number}"
        if run.answered_share < 1:
            share = 100 * (1 - run.answered_share)
            return "failed", f"{place}: {share:.2f} % of the requests got no answer: {run.endings}"
        if not run.valid:
            return "inconclusive", f"{place}: {run.invalid_reason}"
        if record.scenario in STEADY and run.steadiness.verdict == "not_steady":
            return "inconclusive", f"{place} was not steady: {run.steadiness.reason}"
    return None


def _compared(subject: str, metric: str, figure: str, top: LoadRecord, below: LoadRecord) -> Figure:
    """The ratio of one figure of two records."""
    left, right = top.figures.get(figure), below.figures.get(figure)
    faults = [fault for fault in (fault_of(top), fault_of(below)) if fault]
    fault = min(faults, default=None)  # failed before inconclusive
    if fault is None and top.axes != below.axes:
        fault = "inconclusive", f"{top.server} and {below.server} were asked different things"
    if fault is None and (left is None or right is None or min(left.low, right.low) <= 0):
        fault = "inconclusive", f"too few requests for an interval of {figure}: a longer serving.duration_s"
    found = ratio(left, right) if left and right and fault is None else None
    return Figure(subject, metric, found, top, fault)


def _overload(record: LoadRecord, steady: LoadRecord) -> Figure:
    """Goodput at twice the capacity over goodput below it, which may be another server's: a bound on the queue is what
    overload needs and a steady load never meets."""
    found = _compared(f"overload/{record.server}", OVERLOAD, "good_per_s", record, steady)
    sound = fault_of(record) is None
    missed = [run.good_share for run in steady.runs if run.good_share and run.good_share.value < KEPT]
    if missed and sound and fault_of(steady) is None:
        load = f"{steady.server} at a steady load kept {steady.slo.ttft_ms:g}:{steady.slo.tpot_ms:g} ms"
        reason = f"{load} in {100 * missed[0].value:.0f} % of its requests: set serving.slo to what can be kept here"
        return dataclasses.replace(found, fault=("inconclusive", reason))
    nothing = all(run.good_per_s == 0 for run in record.runs) and all(run.good_per_s for run in steady.runs)
    if (nothing and sound) or (found.estimate and found.estimate.high < COLLAPSE):
        reason = f"goodput collapses under overload: below {COLLAPSE:g} of that of {steady.server} at a steady load"
        return dataclasses.replace(found, fault=("failed", reason))
    return found


def figures(records: Sequence[LoadRecord]) -> Iterator[Figure]:
    """Every figure that can be judged of these records."""
    by = {(one.server, one.scenario): one for one in records}
    for scenario, (metric, figure, above, below) in RATIOS.items():
        if (above, scenario) in by and (below, scenario) in by:
            yield _compared(scenario, metric, figure, by[above, scenario], by[below, scenario])
    for (server, scenario), record in by.items():
        steady = by.get((server, "steady")) or next((one for one in records if one.scenario == "steady"), None)
        if scenario == "overload" and steady:
            yield _overload(record, steady)
        for metric in ABSOLUTE if record.gpus else ():
            estimate = record.figures.get(metric)
            fault = fault_of(record) or (None if estimate else ("inconclusive", f"too few requests for {metric}"))
            yield Figure(f"{scenario}/{server}", metric, estimate, record, fault)


def judge(records: Sequence[LoadRecord], expectations: Expectations | None) -> list[Verdict]:
    """One verdict a figure; what is expected and was not measured in a run with load tests is `absent`."""
    known = expectations.serving if expectations else {}
    for subject, case in known.items():
        for metric in case.metrics:
            if metric not in METRICS:
                raise UserError(f"serving.{subject}.metrics.{metric}: unknown metric; there are {', '.join(METRICS)}")
    found = list(figures(records))
    verdicts = [_verdict(one, known.get(one.subject)) for one in found]
    there = {(one.subject, one.metric) for one in found}
    for subject, case in known.items() if records else ():
        for metric in case.metrics:
            if (subject, metric) not in there:
                reason = "expected, but not measured in this run"
                verdicts.append(Verdict(f"serving/{subject}", metric, "absent", reason))
    return verdicts


def _verdict(one: Figure, entry: CaseExpectations | None) -> Verdict:
    subject = f"serving/{one.subject}"
    made = Verdict(subject, one.metric, "absent", "no expectation for this figure on this hardware")
    figure = one.estimate
    if figure is not None:
        made.unit, made.value, made.low, made.high = figure.unit, figure.value, figure.low, figure.high
    if figure is None or one.fault:
        made.verdict, made.reason = one.fault or ("inconclusive", "not measured")
        return made
    wanted = entry.metrics.get(one.metric) if entry else None
    if entry is None or wanted is None:
        return made
    made.expected, made.lower, made.upper = wanted.expected, wanted.lower, wanted.upper
    made.source = f"{wanted.source}; {wanted.note}" if wanted.note else wanted.source
    if entry.axes != one.record.axes:
        made.verdict, made.reason = "expired", "the expectation is for other axes"
    elif entry.machine != one.record.machine:
        made.verdict = "expired"
        made.reason = f"the expectation is for {entry.machine}, this is {one.record.machine}"
    else:
        made.verdict, made.reason = judge_interval(figure, wanted.lower, wanted.upper, METRICS[one.metric])
    return made


def _tells_nothing(one: Figure, figure: Estimate) -> bool:
    """Whether it spreads too much for an expectation that can fail."""
    if one.metric in FLOORS:
        return figure.low <= FLOORS[one.metric]
    return is_wide(figure, "cuda")


def too_wide(records: Sequence[LoadRecord]) -> list[str]:
    """A line for each figure that could be judged and gets no expectation, for it spreads too much."""
    return [
        f"serving/{one.subject} {one.metric}: {figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}] {figure.unit} "
        f"spreads too much for an expectation that can fail: a longer serving.duration_s, or more serving.runs"
        for one in figures(records)
        if (figure := one.estimate) and not one.fault and _tells_nothing(one, figure)
    ]


def updated(old: Expectations, records: Sequence[LoadRecord]) -> Expectations:
    """Expectations with what these records measured; what could not be judged, or spreads too much, keeps its entry."""
    serving = dict(old.serving)
    for one in figures(records):
        if one.estimate is None or one.fault or _tells_nothing(one, one.estimate):
            continue
        lower, upper = bounds(one.estimate, "cuda" if one.record.gpus else "cpu")
        lower = max(lower, FLOORS.get(one.metric, 0.0))
        entry = serving.get(one.subject)
        same = entry is not None and entry.axes == one.record.axes and entry.machine == one.record.machine
        metrics = dict(entry.metrics) if entry and same else {}
        metrics[one.metric] = Expectation(one.estimate.value, lower, upper, one.estimate.unit, MEASURED)
        serving[one.subject] = CaseExpectations(
            axes=one.record.axes,
            code_sha=None,
            machine=one.record.machine,
            metrics=metrics,
            iterations=f"{len(one.record.runs)} runs of {one.record.runs[0].duration_s:g} s",
            method="http",
            provenance=one.record.provenance,
        )
    return msgspec.structs.replace(old, serving=serving)
