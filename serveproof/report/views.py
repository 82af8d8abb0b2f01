"""What the topics show of each machine: its records with their charts drawn, and rows in the order of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serveproof.distributed_records import RankedRecord
from serveproof.report import (
    accuracy_charts,
    accuracy_speed,
    engine_charts,
    jobs,
    pair_charts,
    profile_view,
    ranks_charts,
    serving_view,
    summary,
    telemetry_charts,
)
from serveproof.report.charts import Chart
from serveproof.report.data import Machine, PairResults
from serveproof.report.jobs import JobRow
from serveproof.report.profile_view import CaseView, ProfileView
from serveproof.report.serving_view import ServingView
from serveproof.report.summary import CaseRow, Headline
from serveproof.results import MeasureCase, Metric, Verdict, VerifyRecord
from serveproof.serving_results import LadderRecord

# What one page can hold and draw in seconds: of more, the pairs whose verdicts ask for a look come first.
MOST_PAIRS_SHOWN = 80
MOST_CHARTS_OF_PAIRS = 48


@dataclass(frozen=True)
class CountedRow:
    """One counted figure of one case, both sides beside each other."""

    case: str
    first: bool
    name: str
    baseline: Metric | None
    optimized: Metric | None
    note: str


@dataclass(frozen=True)
class CandidateRow:
    """One back end of one case: what it took, against the fastest, in how many processes it served, or why not."""

    case: str
    first: bool
    name: str
    time_ms: float | None
    ratio: float | None
    served: int
    processes: int
    relative_error: float | None
    reason: str


@dataclass(frozen=True)
class PairView:
    """What the section of one pair shows. id: its anchor. drawn: whether its charts are, for there may be too many."""

    id: str
    results: PairResults
    rows: list[CaseRow]
    samples: dict[str, Chart]
    roofline: Chart | None
    memory: Chart | None
    counted: list[CountedRow]
    candidates: list[CandidateRow]
    profile: ProfileView | None
    drawn: bool


@dataclass(frozen=True)
class LadderView:
    """One ladder, its waterfall, and by rung the failed gate of what it is computed in."""

    record: LadderRecord
    chart: Chart | None
    gates: dict[str, Verdict]


@dataclass(frozen=True)
class RankedView:
    """What one script did over several ranks; charts of ranks, and those of layers of experts."""

    record: RankedRecord
    charts: list[Chart]
    experts: list[Chart]


@dataclass(frozen=True)
class MachineView:
    """What the topics show of one machine; `id` is ours, so that no name from a record becomes an anchor.

    folded: the pairs that have a row in the tables and no section of their own, for there are too many.
    """

    id: str
    machine: Machine
    headline: Headline
    rows: list[CaseRow]
    others: list[Verdict]
    speedups: Chart | None
    pairs: list[PairView]
    gates: dict[str, Verdict]
    served: dict[str, list[Verdict]]
    load_gates: list[Verdict | None]
    accuracy: list[Chart]
    decoder: list[CaseView]
    ladders: list[LadderView]
    serving: ServingView | None
    ranks: list[RankedView]
    injected_percent: float
    jobs: list[JobRow]
    telemetry: list[Chart]
    folded: list[str]

    @property
    def profiled(self) -> list[PairView]:
        """The pairs that have a profile."""
        return [pair for pair in self.pairs if pair.profile]

    @property
    def expert_pairs(self) -> list[CaseRow]:
        """The rows of pairs of experts."""
        return [row for row in self.rows if row.pair.startswith("moe_")]

    @property
    def expert_ranks(self) -> list[RankedView]:
        """What scripts of experts over several ranks did."""
        return [one for one in self.ranks if one.record.expert_layers or one.record.expert_loads]


def view_pair(machine: Machine, pair: PairResults, anchor: str, draw: bool) -> PairView:
    """The rows of one pair, and its charts where they are asked for."""
    cases = pair.measure.cases if pair.measure else []
    passed = [case for case in cases if case.status == "passed"]
    drawn = {case.case: pair_charts.samples(case, pair.samples) for case in passed} if draw else {}
    profile = (
        profile_view.view(pair.profile, pair.measure, machine.hardware.ceilings) if pair.profile and draw else None
    )
    return PairView(
        id=anchor,
        results=pair,
        rows=summary.pair_rows(machine, pair),
        samples={case: chart for case, chart in drawn.items() if chart is not None},
        roofline=pair_charts.roofline(cases, machine.hardware.ceilings) if draw else None,
        memory=pair_charts.memory(cases) if draw else None,
        counted=[row for case in passed for row in counted_rows(case)],
        candidates=[row for case in cases for row in candidate_rows(case, pair.verify)],
        profile=profile,
        drawn=draw,
    )


def candidate_rows(case: MeasureCase, verify: VerifyRecord | None) -> list[CandidateRow]:
    """The back ends of one measured case, in the order of the record: fastest first."""
    if case.optimized is None or case.timing is None:
        return []
    verified = next((one.candidates for one in verify.cases if one.case == case.case), {}) if verify else {}
    fastest_ms = next((one.time_ms for one in case.optimized.candidates if one.time_ms), None)
    return [
        CandidateRow(
            case=case.case,
            first=number == 0,
            name=one.name,
            time_ms=one.time_ms,
            ratio=one.time_ms / fastest_ms if one.time_ms and fastest_ms else None,
            served=one.served,
            processes=case.timing.processes,
            relative_error=verified[one.name].relative_error if one.name in verified else None,
            reason=one.reason,
        )
        for number, one in enumerate(case.optimized.candidates)
    ]


def counted_rows(case: MeasureCase) -> list[CountedRow]:
    """The counted figures of one case, in the order of the records."""
    left = case.baseline.metrics if case.baseline else {}
    right = case.optimized.metrics if case.optimized else {}
    sides = {"baseline": left, "optimized": right}
    rows: list[CountedRow] = []
    for name in dict.fromkeys([*left, *right]):
        notes = {label: side[name].note for label, side in sides.items() if name in side and side[name].note}
        alike = len(notes) == 2 and len(set(notes.values())) == 1
        note = notes["baseline"] if alike else "; ".join(f"{label}: {text}" for label, text in notes.items())
        title = name.replace("_", " ").replace("kv ", "KV ")
        rows.append(CountedRow(case.case, not rows, title, left.get(name), right.get(name), note))
    return rows


def view_machines(machines: Sequence[Machine]) -> list[MachineView]:
    """Every machine; where there are too many pairs for one page, those whose verdicts ask for a look come first."""
    rows = [summary.rows_by_pair(machine) for machine in machines]
    every = [
        (summary.urgency(rows[number][pair.name]), number, pair)
        for number, machine in enumerate(machines)
        for pair in machine.pairs
    ]
    shown = sorted(every, key=lambda one: one[0])[:MOST_PAIRS_SHOWN]
    drawn: set[tuple[int, str]] = set()
    charts_left = MOST_CHARTS_OF_PAIRS
    for _, number, pair in shown:
        charts_left -= 2 + sum(case.status == "passed" for case in (pair.measure.cases if pair.measure else []))
        if charts_left >= 0:
            drawn.add((number, pair.name))
    sections = {(number, pair.name) for _, number, pair in shown}
    return [_machine(machine, number, sections, drawn) for number, machine in enumerate(machines)]


def _machine(machine: Machine, number: int, shown: set[tuple[int, str]], drawn: set[tuple[int, str]]) -> MachineView:
    kept = {f"m{number}-pair{place}": pair for place, pair in enumerate(machine.pairs) if (number, pair.name) in shown}
    record = machine.perplexity
    found = {one.precision: summary.gate_verdict(machine, one.precision) for one in record.precisions} if record else {}
    gates = {precision: verdict for precision, verdict in found.items() if verdict is not None}
    accuracy = [
        accuracy_charts.relative_to_bf16(record, gates) if record else None,
        accuracy_speed.precisions(record) if record else None,
        *(accuracy_speed.rungs(one) for one in machine.ladders),
        accuracy_charts.by_window(machine.window_deltas),
        accuracy_charts.sensitivity(record.sensitivity) if record else None,
    ]
    rows = summary.case_rows(machine)
    return MachineView(
        id=f"m{number}",
        machine=machine,
        headline=summary.headline(machine),
        rows=rows,
        others=summary.other_verdicts(machine),
        speedups=pair_charts.speedups(rows),
        pairs=[view_pair(machine, pair, anchor, (number, pair.name) in drawn) for anchor, pair in kept.items()],
        gates=gates,
        served={one.path: summary.served_verdicts(machine, one.path) for one in record.served} if record else {},
        load_gates=summary.load_gates(machine),
        decoder=profile_view.decoder(machine.decoder, machine.hardware.ceilings) if machine.decoder else [],
        ladders=[
            LadderView(one, engine_charts.waterfall(one), failed)
            for one, failed in zip(machine.ladders, summary.rung_gates(machine), strict=True)
        ],
        ranks=[RankedView(one, ranks_charts.between(one), ranks_charts.experts(one)) for one in machine.ranked],
        accuracy=[chart for chart in accuracy if chart is not None],
        serving=serving_view.view(machine.serving, summary.verdicts(machine)) if machine.serving else None,
        injected_percent=max(
            (row.measured.timing.injected_slowdown_percent for row in rows if row.measured and row.measured.timing),
            default=0.0,
        ),
        jobs=jobs.job_rows(machine.jobs),
        telemetry=telemetry_charts.of(machine.serving.tests) if machine.serving else [],
        folded=[pair.name for pair in machine.pairs if (number, pair.name) not in shown],
    )
