"""Machines beside each other: measured ones and those that only public records tell of.

Two cells stand in one row only where pair and axes are equal. A case's name says nothing: the same name has other
shapes on another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serveproof.expectations import MEASURED, Expectation, Expectations
from serveproof.report import numbers
from serveproof.report.summary import CaseRow
from serveproof.results import HardwareRecord


@dataclass(frozen=True)
class Cell:
    """One case on one machine: a speedup with its range, or words instead of one."""

    value: str
    interval: str = ""
    words: str = ""


@dataclass(frozen=True)
class BesideRow:
    """One case, the same axes in every cell; cells in the order of the columns."""

    pair: str
    case: str
    axes: dict[str, Any]
    cells: list[Cell]


@dataclass(frozen=True)
class SourcedCase:
    """A figure that somebody published: not measured by us. key: the hardware that it is said of."""

    key: str
    machine: str
    pair: str
    case: str
    axes: dict[str, Any]
    metrics: dict[str, Expectation]
    source: str


@dataclass(frozen=True)
class Beside:
    """The table. sourced: keys of the columns that are public records, after the measured ones.

    alone: public records of shapes that no machine here measured; they are listed and compared with nothing.
    """

    measured: list[str]
    sourced: list[str]
    rows: list[BesideRow]
    matched: list[SourcedCase]
    alone: list[SourcedCase]


def sourced_cases(files: Sequence[Expectations]) -> list[SourcedCase]:
    """The public records among expectations: what has a source of its own and no provenance of ours."""
    return [
        SourcedCase(one.hardware, case.machine, pair, name, case.axes, case.metrics, metric.source)
        for one in files
        for pair, cases in one.pairs.items()
        for name, case in cases.items()
        if case.provenance is None and (metric := case.metrics.get("speedup")) and metric.source != MEASURED
    ]


def beside(
    hardware: Sequence[HardwareRecord], rows: Sequence[Sequence[CaseRow]], public: Sequence[SourcedCase]
) -> Beside:
    """Every case that any machine measured, with the public records of the same axes. rows: those of each machine."""
    measured = [{_shape(row.pair, row.axes): row for row in some} for some in rows]
    published = {key: {_shape(one.pair, one.axes): one for one in public if one.key == key} for key in _keys(public)}
    shapes = dict.fromkeys(shape for some in measured for shape in some)
    matched = [one for one in public if _shape(one.pair, one.axes) in shapes]
    columns = [key for key in published if any(one.key == key for one in matched)]
    found = []
    for shape in shapes:
        named = next(some[shape] for some in measured if shape in some)
        cells = [_measured(some.get(shape)) for some in measured]
        cells += [_published(published[key].get(shape)) for key in columns]
        found.append(BesideRow(named.pair, named.case, named.axes, cells))
    found.sort(key=lambda row: row.pair)
    alone = [one for one in public if one not in matched]
    return Beside([one.key for one in hardware], columns, found, matched, alone)


def _keys(public: Sequence[SourcedCase]) -> list[str]:
    return list(dict.fromkeys(one.key for one in public))


def _shape(pair: str, axes: dict[str, Any]) -> tuple[str, bytes]:
    return pair, msgspec.json.encode(axes, order="sorted")


def _measured(row: CaseRow | None) -> Cell:
    if row is None:
        return Cell("", words="–")
    if row.measured is None or row.measured.speedup is None:
        return Cell("", words=row.status.replace("_", " "))
    return Cell(*numbers.ratio(row.measured.speedup))


def _published(one: SourcedCase | None) -> Cell:
    if one is None:
        return Cell("", words="–")
    found = one.metrics["speedup"]
    return Cell(f"{numbers.significant(found.expected)}×", numbers.bounds(found.lower, found.upper))
