"""Results against expectations: loading, judging by interval, rewriting from results that passed. Never imports torch.

expectations_{hardware}.json: pair -> case -> {axes, code_sha, machine, metrics: metric -> {expected, lower, upper,
unit, source}}. An expectation is for exactly its axes and machine, and (when we measured it) for exactly its code:
otherwise it has expired, and an expired one never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from serveproof.distributed_records import RankedCase, RankedFigure, RankedRecord
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.results import (
    Estimate,
    MeasureCase,
    MeasureRecord,
    Provenance,
    Record,
    Timing,
    Verdict,
    VerdictName,
)

MEASURED = "measured"
# the metric of a case of several ranks that has only to be true
HOLDS = "holds"


class Expectation(Record):
    """One figure: what is expected, and the range outside which it is wrong. `source` says who measured it."""

    expected: float
    lower: float
    upper: float
    unit: str
    source: str
    note: str = ""


class CaseExpectations(Record):
    """The expectations of one case: valid for these axes on this machine (the chip's name, for `cpu` is many chips)
    and, when code_sha is set, for this code alone.

    iterations and provenance say how and on what it was measured; None for a published figure that we did not measure.
    method: the clock it was measured by; another clock's figures are not comparable.
    """

    axes: dict[str, Any]
    code_sha: str | None
    machine: str
    metrics: dict[str, Expectation]
    iterations: str = ""
    method: str = ""
    provenance: Provenance | None = None


class Expectations(Record, omit_defaults=True):
    """expectations_{hardware}.json. A case that we did not measure has no provenance. serving: of load tests, by what
    is compared; serveproof.load_judging knows their metrics. They are not tied to code: all of the engine serves.
    ranks: script -> case, of what several ranks did together.
    """

    hardware: str
    pairs: dict[str, dict[str, CaseExpectations]]
    serving: dict[str, CaseExpectations] = msgspec.field(default_factory=dict)
    ranks: dict[str, dict[str, CaseExpectations]] = msgspec.field(default_factory=dict)


# metric -> (is higher better, the figure in a passed case)
METRICS: dict[str, tuple[bool, Callable[[MeasureCase], Estimate | None]]] = {
    "speedup": (True, lambda case: case.speedup),
    "baseline_ms": (False, lambda case: case.baseline.time if case.baseline else None),
    "optimized_ms": (False, lambda case: case.optimized.time if case.optimized else None),
    "baseline_gpu_busy_ms": (False, lambda case: case.baseline.gpu_busy if case.baseline else None),
    "optimized_gpu_busy_ms": (False, lambda case: case.optimized.gpu_busy if case.optimized else None),
}
GPU_BUSY_METRICS = ("baseline_gpu_busy_ms", "optimized_gpu_busy_ms")
# On a shared CPU no absolute time means anything: ratios only.
CPU_METRICS = ("speedup",)
# Half-widths of the range that --update-expectations writes, as shares of the figure: at least this, and at least
# MARGIN_INTERVALS half-intervals.
MARGINS = {"cpu": 0.08, "cuda": 0.03}
MARGIN_INTERVALS = 2.0
# A range wider than this share of the figure to either side tells nothing: none is written, and `too_wide` says so.
WIDEST = {"cpu": 0.5, "cuda": 0.25}


def load(path: Path) -> Expectations:
    """Read and validate one file. UserError naming the file, the place and the mend."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Expectations)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `python compare.py --update-expectations` writes one") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: wrong schema ({error}); mend that place, or write the file anew with "
            f"`python compare.py --update-expectations`"
        ) from None
    for pair, cases in found.pairs.items():
        for case, expectations in cases.items():
            for metric, entry in expectations.metrics.items():
                place = f"{path}: pairs.{pair}.{case}.metrics.{metric}"
                if metric not in METRICS:
                    raise UserError(f"{place}: unknown metric; there are {', '.join(METRICS)}")
                if not 0 < entry.lower <= entry.expected <= entry.upper:
                    raise UserError(f"{place}: needs 0 < lower <= expected <= upper")
    return found


def judge_interval(figure: Estimate, lower: float, upper: float, higher_is_better: bool) -> tuple[VerdictName, str]:
    """Compare the whole interval with [lower, upper].

    met: inside. regressed: wholly on the worse side. too_good: wholly on the better side. Otherwise inconclusive.
    """
    if lower <= figure.low and figure.high <= upper:
        return "met", "the interval lies within the expected range"
    if figure.high < lower or figure.low > upper:
        worse = (figure.high < lower) == higher_is_better
        if worse:
            return "regressed", "the whole interval lies on the worse side of the expected range"
        return "too_good", "the whole interval lies beyond the expected range: better than believed, find out why"
    return "inconclusive", "the interval straddles the expected range's edge: measure longer"


def _verdict(subject: str, metric: str, verdict: VerdictName, reason: str, **figures: Any) -> Verdict:
    return Verdict(subject=subject, metric=metric, verdict=verdict, reason=reason, **figures)


def _judge_case(record: MeasureRecord, case: MeasureCase, entry: CaseExpectations | None) -> Iterator[Verdict]:
    subject = f"{record.pair}/{case.case}"
    if case.status == "skipped":
        yield _verdict(subject, "speedup", "skipped", case.reason)
        return
    if case.status != "passed":
        yield _verdict(subject, "speedup", "failed", f"{case.status}: {case.reason}")
        return
    metrics = dict(METRICS) if entry is None else {name: METRICS[name] for name in entry.metrics}
    if entry is None:
        metrics = {"speedup": METRICS["speedup"]}
    for metric, (higher_is_better, figure_of) in metrics.items():
        figure = figure_of(case)
        if figure is None:
            yield _verdict(subject, metric, "absent", "expected, but not measured: it takes cupti-python")
            continue
        code_sha, method = record.code_sha, case.timing.method if case.timing else ""
        yield _judge_figure(
            subject, metric, figure, higher_is_better, entry, case.axes, record.machine, code_sha, method
        )


def _judge_figure(
    subject: str,
    metric: str,
    figure: Estimate,
    higher_is_better: bool,
    entry: CaseExpectations | None,
    axes: dict[str, Any],
    machine: str,
    code_sha: str,
    method: str,
) -> Verdict:
    """One figure against its case's expectations, if those are for these axes, this machine, clock and code."""
    seen: dict[str, Any] = {"value": figure.value, "low": figure.low, "high": figure.high, "unit": figure.unit}
    wanted = entry.metrics.get(metric) if entry else None
    if entry is None or wanted is None:
        return _verdict(subject, metric, "absent", "no expectation for this case on this hardware", **seen)
    seen |= {
        "expected": wanted.expected,
        "lower": wanted.lower,
        "upper": wanted.upper,
        "source": f"{wanted.source}; {wanted.note}" if wanted.note else wanted.source,
    }
    if entry.axes != axes:
        return _verdict(subject, metric, "expired", "the expectation is for other axes", **seen)
    if entry.machine != machine:
        reason = f"the expectation is for {entry.machine}, this is {machine}"
        return _verdict(subject, metric, "expired", reason, **seen)
    if method and entry.method not in ("", method):
        reason = f"the expectation was measured by {entry.method}, this by {method}"
        return _verdict(subject, metric, "expired", reason, **seen)
    if entry.code_sha is not None and entry.code_sha != code_sha:
        return _verdict(subject, metric, "expired", "the code changed since the expectation", **seen)
    verdict, reason = judge_interval(figure, wanted.lower, wanted.upper, higher_is_better)
    return _verdict(subject, metric, verdict, reason, **seen)


def judge_pairs(records: list[MeasureRecord], expectations: Expectations | None, hardware: str) -> list[Verdict]:
    """One verdict a case and metric. Expectations for another hardware are a UserError: they gate no other chip."""
    if expectations is not None and expectations.hardware != hardware:
        raise UserError(
            f"expectations for '{expectations.hardware}' can't judge '{hardware}'; each hardware has its own file"
        )
    known = expectations.pairs if expectations else {}
    verdicts = [
        verdict
        for record in records
        for case in record.cases
        for verdict in _judge_case(record, case, known.get(record.pair, {}).get(case.case))
    ]
    there = {f"{record.pair}/{case.case}" for record in records for case in record.cases}
    # What vanished must not pass unnoticed: a figure that we measured once, and not in this run, is a verdict too.
    expected = {f"{pair}/{name}" for pair, cases in known.items() for name, case in cases.items() if case.code_sha}
    verdicts += [
        _verdict(subject, "speedup", "absent", "expected, but not measured in this run")
        for subject in sorted(expected - there)
    ]
    return verdicts


def judged_figures(record: RankedRecord, case: RankedCase) -> dict[str, RankedFigure]:
    """What a case of several ranks is judged by: on a CPU ratios alone, for a shared one gives no times."""
    return {name: one for name, one in case.figures.items() if record.device == "cuda" or one.ratio}


def judge_ranks(records: list[RankedRecord], expectations: Expectations | None) -> list[Verdict]:
    """Whether each case held, and a verdict a judged figure. Subject: script/case."""
    known = expectations.ranks if expectations else {}
    verdicts = []
    for record in records:
        for case in record.cases:
            subject = f"{record.script}/{case.case}"
            if case.status == "skipped":
                verdicts.append(_verdict(subject, HOLDS, "skipped", case.reason))
                continue
            if case.status != "passed":
                verdicts.append(_verdict(subject, HOLDS, "failed", f"{case.status}: {case.reason}"))
                continue
            verdicts.append(_verdict(subject, HOLDS, "met", case.reason))
            entry = known.get(record.script, {}).get(case.case)
            for name, one in judged_figures(record, case).items():
                verdicts.append(
                    _judge_figure(
                        subject, name, one.estimate, one.higher_is_better, entry, case.axes, record.machine,
                        record.code_sha, "",
                    )
                )  # fmt: skip
    there = {f"{record.script}/{case.case}" for record in records for case in record.cases}
    expected = {f"{name}/{case}" for name, cases in known.items() for case in cases}
    verdicts += [
        _verdict(subject, HOLDS, "absent", "expected, but not measured in this run")
        for subject in sorted(expected - there)
    ]
    return verdicts


def bounds(figure: Estimate, device: str) -> tuple[float, float]:
    """The [lower, upper] that an expectation made from this figure gets."""
    half = max(MARGINS[device] * figure.value, MARGIN_INTERVALS * (figure.high - figure.low) / 2)
    return max(figure.value - half, figure.value / 10), figure.value + half


def figures_of(case: MeasureCase, device: str) -> dict[str, Estimate]:
    """What was measured of a case, as far as it means something on a device; nothing of one that did not pass."""
    names = CPU_METRICS if device == "cpu" else METRICS
    found = {name: METRICS[name][1](case) for name in names if case.status == "passed"}
    return {name: figure for name, figure in found.items() if figure is not None}


def judged(metrics: Iterable[str], device: str) -> list[str]:
    """Which of a case's metrics get an expectation. Where a GPU's own time is known beside the host's clock, that
    alone: the host's moves with the machine, by more from one run to the next than within either.
    """
    if device == "cpu":
        return [name for name in metrics if name in CPU_METRICS]
    known = list(metrics)
    return [name for name in known if name in GPU_BUSY_METRICS] or known


def judged_of(case: MeasureCase, device: str) -> dict[str, Estimate]:
    """The figures of a case that get an expectation."""
    found = figures_of(case, device)
    return {name: found[name] for name in judged(found, device)}


def is_wide(figure: Estimate, device: str) -> bool:
    """Whether an expectation made from this figure would have a range that tells nothing."""
    return bounds(figure, device)[1] > (1 + WIDEST[device]) * figure.value


def too_wide(hardware: str, records: list[MeasureRecord]) -> list[str]:
    """A line for each figure that passed and gets no expectation, for its own spread would make the range too wide."""
    device = device_of(hardware)
    lines = []
    for record in records:
        for case in record.cases:
            for metric, figure in judged_of(case, device).items():
                if is_wide(figure, device):
                    lines.append(
                        f"{record.pair}/{case.case} {metric}: {figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}] "
                        f"{figure.unit} spreads too much for an expectation that can fail: measure with more processes"
                    )
    return lines


def updated(
    old: Expectations | None, hardware: str, records: list[MeasureRecord], ranked: list[RankedRecord] | None = None
) -> Expectations:
    """Expectations from the cases that passed; what did not run, or did not pass, keeps its old entry.

    A figure that spreads too much gets none (`too_wide` names them).
    """
    device = device_of(hardware)
    found = {pair: dict(cases) for pair, cases in (old.pairs if old else {}).items()}
    for record in records:
        for case in record.cases:
            if case.status != "passed":
                continue
            if case.timing and case.timing.injected_slowdown_percent:
                raise UserError(
                    f"{record.pair}/{case.case}: was slowed on purpose by {case.timing.injected_slowdown_percent:g} %; "
                    f"measure again with measure.injected_slowdown_percent 0 before rewriting expectations"
                )
            metrics = {}
            for metric, figure in judged_of(case, device).items():
                if is_wide(figure, device):
                    continue
                metrics[metric] = _expectation(figure, device)
            if not metrics:
                # An entry without a figure would let the case pass without a verdict; without one it is `absent`.
                found.get(record.pair, {}).pop(case.case, None)
                continue
            found.setdefault(record.pair, {})[case.case] = CaseExpectations(
                axes=case.axes,
                code_sha=record.code_sha,
                machine=record.machine,
                metrics=metrics,
                iterations=_iterations(case.timing) if case.timing else "",
                method=case.timing.method if case.timing else "",
                provenance=record.provenance,
            )
    serving, ranks = (old.serving if old else {}), _updated_ranks(old, device, ranked or [])
    return Expectations(hardware=hardware, pairs=found, serving=serving, ranks=ranks)


def _updated_ranks(
    old: Expectations | None, device: str, records: list[RankedRecord]
) -> dict[str, dict[str, CaseExpectations]]:
    """The same of several ranks' figures: those that are judged, and don't spread too much."""
    found = {name: dict(cases) for name, cases in (old.ranks if old else {}).items()}
    for record in records:
        for case in record.cases:
            if case.status != "passed":
                continue
            metrics = {
                name: _expectation(one.estimate, device)
                for name, one in judged_figures(record, case).items()
                if not is_wide(one.estimate, device)
            }
            if not metrics:
                found.get(record.script, {}).pop(case.case, None)
                continue
            found.setdefault(record.script, {})[case.case] = CaseExpectations(
                axes=case.axes,
                code_sha=record.code_sha,
                machine=record.machine,
                metrics=metrics,
                provenance=record.provenance,
            )
    return found


def _expectation(figure: Estimate, device: str) -> Expectation:
    lower, upper = bounds(figure, device)
    return Expectation(expected=figure.value, lower=lower, upper=upper, unit=figure.unit, source=MEASURED)


def _iterations(timing: Timing) -> str:
    return f"{timing.processes} processes x {timing.rounds} rounds by {timing.method}"


EXIT_MET, EXIT_REGRESSED, EXIT_USAGE, EXIT_NOT_JUDGED = 0, 1, 2, 3


def exit_code(verdicts: list[Verdict]) -> int:
    """0: all met or skipped. 1: something regressed, failed or is too good. 3: something could not be judged."""
    names = {verdict.verdict for verdict in verdicts}
    if names & {"regressed", "failed", "too_good"}:
        return EXIT_REGRESSED
    return EXIT_NOT_JUDGED if names & {"expired", "absent", "inconclusive"} or not names else EXIT_MET
