"""Renders the page: templates, the drawing library and the data in one file that never asks the network for anything.

The policy in the page's head names the only two scripts that may run, by their hashes. So text that slipped through
the escaping could still neither run nor load: the browser refuses it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from serveproof.distributed_records import RankedRecord
from serveproof.report import (
    accuracy_charts,
    charts,
    engine_charts,
    jobs,
    numbers,
    pair_charts,
    profile_view,
    ranks_charts,
    serving_view,
    summary,
    words,
)
from serveproof.report.charts import Chart
from serveproof.report.data import Machine, PairResults
from serveproof.report.jobs import JobRow
from serveproof.report.profile_view import CaseView, ProfileView
from serveproof.report.serving_view import ServingView
from serveproof.report.summary import CaseRow, Headline
from serveproof.results import MeasureCase, Metric, Provenance, Verdict, VerifyRecord
from serveproof.serving_results import LadderRecord


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
    """What the section of one pair shows."""

    results: PairResults
    rows: list[CaseRow]
    samples: dict[str, Chart]
    roofline: Chart | None
    memory: Chart | None
    counted: list[CountedRow]
    candidates: list[CandidateRow]
    profile: ProfileView | None


@dataclass(frozen=True)
class LadderView:
    """One ladder and its waterfall."""

    record: LadderRecord
    chart: Chart | None
    gates: dict[str, Verdict]


@dataclass(frozen=True)
class RankedView:
    """What one script did over several ranks."""

    record: RankedRecord
    charts: list[Chart]


@dataclass(frozen=True)
class MachineView:
    """What the sections of one machine show; `id` is ours, so that no name from a record becomes an anchor."""

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


def view_pair(machine: Machine, pair: PairResults) -> PairView:
    """Draw the charts of one pair."""
    cases = pair.measure.cases if pair.measure else []
    drawn = {case.case: pair_charts.samples(case, pair.samples) for case in cases if case.status == "passed"}
    return PairView(
        results=pair,
        rows=summary.pair_rows(machine, pair),
        samples={case: chart for case, chart in drawn.items() if chart is not None},
        roofline=pair_charts.roofline(cases, machine.hardware.ceilings),
        memory=pair_charts.memory(cases),
        counted=[row for case in cases if case.status == "passed" for row in counted_rows(case)],
        candidates=[row for case in cases for row in candidate_rows(case, pair.verify)],
        profile=profile_view.view(pair.profile, pair.measure, machine.hardware.ceilings) if pair.profile else None,
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


def view_machine(machine: Machine, number: int) -> MachineView:
    """Draw the charts of one machine and count its verdicts."""
    pairs = [view_pair(machine, pair) for pair in machine.pairs]
    rows = [row for pair in pairs for row in pair.rows]
    record = machine.perplexity
    found = {one.precision: summary.gate_verdict(machine, one.precision) for one in record.precisions} if record else {}
    gates = {precision: verdict for precision, verdict in found.items() if verdict is not None}
    accuracy = [
        accuracy_charts.relative_to_bf16(record, gates) if record else None,
        accuracy_charts.by_window(machine.window_deltas),
        accuracy_charts.sensitivity(record.sensitivity) if record else None,
    ]
    return MachineView(
        id=f"m{number}",
        machine=machine,
        headline=summary.headline(machine),
        rows=rows,
        others=summary.other_verdicts(machine),
        speedups=pair_charts.speedups(rows),
        pairs=pairs,
        gates=gates,
        served={one.path: summary.served_verdicts(machine, one.path) for one in record.served} if record else {},
        load_gates=summary.load_gates(machine),
        decoder=profile_view.decoder(machine.decoder, machine.hardware.ceilings) if machine.decoder else [],
        ladders=[
            LadderView(one, engine_charts.waterfall(one), gates)
            for one, gates in zip(machine.ladders, summary.rung_gates(machine), strict=True)
        ],
        ranks=[RankedView(one, ranks_charts.of(one)) for one in machine.ranked],
        accuracy=[chart for chart in accuracy if chart is not None],
        serving=serving_view.view(machine.serving, summary.verdicts(machine)) if machine.serving else None,
        injected_percent=max(
            (row.measured.timing.injected_slowdown_percent for row in rows if row.measured and row.measured.timing),
            default=0.0,
        ),
        jobs=jobs.job_rows(machine.jobs),
    )


def render(machines: Sequence[Machine], provenance: Provenance) -> str:
    """The whole page as text."""
    library, page = drawing_library(), _asset("page.js")
    template = _environment().get_template("page.html.j2")
    views = [view_machine(machine, number) for number, machine in enumerate(machines)]
    return template.render(
        machines=views,
        beside=jobs.beside([view.rows for view in views]) if len(views) > 1 else [],
        provenance=provenance,
        rule=summary.RULE,
        config=charts.theme(),
        # These three are our own files and the drawing library's; nothing of a record is in them.
        style=Markup(_asset("style.css")),  # noqa: S704
        library=Markup(library),  # noqa: S704
        page_script=Markup(page),  # noqa: S704
        script_hashes=[_policy_hash(library), _policy_hash(page)],
    )


@cache
def drawing_library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, of the Vega-Lite version that Altair writes."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.serveproofEmbed = vegaEmbed;", vl_version=version)
    # Its top-level names stay its own; and what would end a script element early must not stand in one.
    return "(() => {" + bundle.replace("</script", r"<\/script").replace("<!--", r"<\!--").replace("\r", "") + "})();"


def _policy_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files("serveproof.report") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("serveproof.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        parts=numbers.parts,
        ratio=numbers.ratio,
        share=numbers.share,
        metric=numbers.metric,
        significant=numbers.significant,
        count=numbers.count,
        signed=numbers.signed,
        moment=numbers.moment,
        axes=words.axes_text,
        badge=words.badge,
        gate_badge=words.gate_badge,
    )
    environment.globals.update(
        figure=numbers.figure,
        bounds=numbers.bounds,
        timing_rows=words.timing_rows,
        machine_rows=words.machine_rows,
        placed=jobs.placed,
        ceiling_rows=words.ceiling_rows,
    )
    return environment
