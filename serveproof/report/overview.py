"""The general statistics: a row a pair and machine, in the manner of MultiQC."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from serveproof.report import numbers, words
from serveproof.report.data import Machine
from serveproof.report.summary import URGENT_FIRST, CaseRow, called, gate_failed, pair_gate, rows_by_pair
from serveproof.report.words import Badge
from serveproof.results import MeasureCase, Verdict


@dataclass(frozen=True)
class StatColumn:
    """A column: its heading, what it is in a sentence, and whether a reader who has scripts must ask for it."""

    name: str
    heading: str
    meaning: str
    extra: bool = False


COLUMNS = (
    StatColumn("verdict", "verdict", "the most urgent verdict of its cases"),
    StatColumn("pays", "cases that pay", "cases verified with a speedup interval wholly above 1, of all cases"),
    StatColumn(
        "speedup",
        "speedup",
        "least to greatest over its cases; bar: their 95 % intervals, log scale; a mark a case; dashed: 1×",
    ),
    StatColumn("roofline", "of the roofline", "the optimized sides' share of what the measured ceilings allow"),
    StatColumn("memory", "peak memory", "optimized ÷ baseline, least to greatest; the dashed line is 1×"),
    StatColumn("accuracy", "accuracy", "the accuracy gate on what it computes in, on a whole model"),
    StatColumn("bound", "bound by", "what binds the optimized sides", extra=True),
    StatColumn("spread", "± of the speedup", "the widest half-interval over its cases, of the speedup", extra=True),
    StatColumn(
        "error", "error of its bound", "the greatest relative error of an optimized side over its bound", extra=True
    ),
    StatColumn("took", "took", "time to measure it, all its cases", extra=True),
)


@dataclass(frozen=True)
class Bar:
    """A bar in a cell, in percent of the cell's width; marks: a place a case; rule: where no change is."""

    start: float
    end: float
    marks: list[float]
    rule: float | None


@dataclass(frozen=True)
class StatCell:
    """value sorts; text is read."""

    text: str
    value: float
    bar: Bar | None = None
    badge: Badge | None = None


@dataclass(frozen=True)
class StatRow:
    """One pair on one machine. anchor: of its section, '' where it has none. cells: in the order of COLUMNS."""

    machine: str
    pair: str
    anchor: str
    tone: str
    cells: list[StatCell]


def columns_of(rows: Sequence[StatRow]) -> list[StatColumn]:
    """COLUMNS, those that no row has a figure for among the extra ones."""
    return [
        replace(column, extra=column.extra or all(row.cells[place] == NOTHING for row in rows))
        for place, column in enumerate(COLUMNS)
    ]


Scale = Callable[[float], float]
NOTHING = StatCell("–", -1.0)


def stat_rows(machines: Sequence[Machine], anchors: Sequence[Mapping[str, str]]) -> list[StatRow]:
    """Every pair of every machine. anchors: of each machine, pair -> the anchor of its section."""
    tables = [rows_by_pair(machine) for machine in machines]
    every = [row.measured for table in tables for rows in table.values() for row in rows if row.measured]
    speed = _log_scale([edge for case in every if case.speedup for edge in (case.speedup.low, case.speedup.high)])
    memory = _log_scale([ratio for case in every for ratio in _memory(case)])
    return [
        _row(machine, pair, mine.get(pair, ""), rows, speed, memory)
        for machine, table, mine in zip(machines, tables, anchors, strict=True)
        for pair, rows in table.items()
    ]


def _row(machine: Machine, pair: str, anchor: str, rows: Sequence[CaseRow], speed: Scale, memory: Scale) -> StatRow:
    measured = [row.measured for row in rows if row.measured]
    name = called(rows)
    gate = pair_gate(machine, pair)
    paying = sum(row.pays for row in rows)
    mark = words.badge(name)
    tone = "bad" if gate_failed(gate) else mark.tone
    cells = {
        "verdict": StatCell(mark.word, float(-URGENT_FIRST.index(name)), badge=mark),
        "pays": _pays(paying, len(rows), gate),
        "speedup": _speedup(measured, speed),
        "roofline": _roofline(measured),
        "memory": _memory_cell(measured, memory),
        "accuracy": _accuracy(gate),
        "bound": _bound(measured),
        "spread": _spread(measured),
        "error": _error(machine, pair),
        "took": _took(measured),
    }
    return StatRow(machine.hardware.key, pair, anchor, tone, [cells[column.name] for column in COLUMNS])


def _pays(paying: int, cases: int, gate: Verdict | None) -> StatCell:
    text = f"{paying} of {cases}"
    mark = Badge("✗", f"{text}, fast but wrong", "bad") if gate_failed(gate) else None
    mark = mark or (Badge("✓", text, "good") if paying else Badge("–", text, "quiet"))
    return StatCell(text, paying / cases if cases else -1.0, badge=mark)


def _log_scale(values: Sequence[float]) -> Scale:
    """Value -> percent, with 1 inside and room at both ends."""
    logs = [math.log(value) for value in values if value > 0] + [0.0]
    low, high = min(logs), max(logs)
    room = 0.06 * (high - low) or 0.1
    return lambda value: round(100 * (math.log(value) - low + room) / (high - low + 2 * room), 1)


def _range(values: Sequence[float]) -> str:
    low, high = numbers.significant(min(values)), numbers.significant(max(values))
    return f"{low}×" if low == high else f"{low} – {high}×"


def _speedup(cases: Sequence[MeasureCase], scale: Scale) -> StatCell:
    found = [case.speedup for case in cases if case.speedup and case.speedup.low > 0]
    if not found:
        return NOTHING
    values = [one.value for one in found]
    bar = Bar(scale(min(one.low for one in found)), scale(max(one.high for one in found)),
              [scale(value) for value in values], scale(1.0))  # fmt: skip
    return StatCell(_range(values), max(values), bar)


def _roofline(cases: Sequence[MeasureCase]) -> StatCell:
    values = [100 * case.optimized.roofline_fraction.value for case in cases if case.optimized]
    if not values:
        return NOTHING
    low, high = numbers.significant(min(values), 2), numbers.significant(max(values), 2)
    text = f"{low} %" if low == high else f"{low} – {high} %"
    marks = [min(value, 100.0) for value in values]
    return StatCell(text, max(values), Bar(0.0, max(marks), marks if len(marks) > 1 else [], None))


def _memory(case: MeasureCase) -> list[float]:
    if not case.baseline or not case.optimized or not case.baseline.peak_memory_bytes:
        return []
    ratio = case.optimized.peak_memory_bytes / case.baseline.peak_memory_bytes
    return [ratio] if ratio > 0 else []


def _memory_cell(cases: Sequence[MeasureCase], scale: Scale) -> StatCell:
    values = [ratio for case in cases for ratio in _memory(case)]
    if not values:
        return NOTHING
    bar = Bar(scale(min(values)), scale(max(values)), [scale(value) for value in values], scale(1.0))
    return StatCell(_range(values), max(values), bar)


def _accuracy(gate: Verdict | None) -> StatCell:
    if gate is None:
        return NOTHING
    mark = words.gate_badge(gate.verdict)
    return StatCell(mark.word, gate.value if gate.value is not None else 0.0, badge=mark)


def _bound(cases: Sequence[MeasureCase]) -> StatCell:
    found = dict.fromkeys(words.bound(case, case.optimized) for case in cases if case.optimized)
    text = ", ".join(name for name in found if name)
    return StatCell(text or "–", float(len(text)))


def _spread(cases: Sequence[MeasureCase]) -> StatCell:
    found = [50 * (one.high - one.low) / one.value for case in cases if (one := case.speedup) and one.value > 0]
    return StatCell(f"± {numbers.significant(max(found), 2)} %", max(found)) if found else NOTHING


def _error(machine: Machine, pair: str) -> StatCell:
    verify = next((one.verify for one in machine.pairs if one.name == pair), None)
    found = [
        100 * case.optimized.relative_error / case.optimized.relative_bound
        for case in (verify.cases if verify else [])
        if case.optimized.relative_error is not None and case.optimized.relative_bound
    ]
    if not found:
        return NOTHING
    worst = max(found)
    return StatCell(f"{numbers.significant(worst, 2)} %", worst, Bar(0.0, min(worst, 100.0), [], None))


def _took(cases: Sequence[MeasureCase]) -> StatCell:
    seconds = sum(case.timing.seconds for case in cases if case.timing)
    return StatCell(numbers.figure(seconds, "s"), seconds) if seconds else NOTHING
