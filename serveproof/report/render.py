"""Renders the page: templates, styles, scripts and data in one file that never asks the network for anything.

The policy in the page's head names the only script that may run, by its hash. So text that slipped through the
escaping could still neither run nor load: the browser refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from serveproof.report import drawing, history_charts, jobs, machines, numbers, overview, summary, topics, views, words
from serveproof.report.charts import Chart
from serveproof.report.data import History, Machine
from serveproof.report.history_charts import HistoryView
from serveproof.report.machines import Beside, SourcedCase
from serveproof.report.overview import StatRow
from serveproof.report.views import MachineView
from serveproof.results import Provenance

STYLES = ("base.css", "layout.css", "tables.css", "charts.css", "topics.css", "narrow.css", "print.css")
SCRIPTS = ("topics.js", "tables.js", "charts.js")


@dataclass(frozen=True)
class Page:
    """All that the page shows, before it is text. history: of each machine that has one."""

    machines: list[MachineView]
    stats: list[StatRow]
    beside: Beside
    provenance: Provenance
    history: list[HistoryView]


def page(
    found: Sequence[Machine],
    provenance: Provenance,
    history: Sequence[History] = (),
    public: Sequence[SourcedCase] = (),
) -> Page:
    """Draw every machine and put them beside each other. public: records of others, beside what has the same shapes."""
    drawn = views.view_machines(found)
    compared = machines.beside([one.hardware for one in found], [view.rows for view in drawn], public)
    trends = [history_charts.view(one) for one in history if one.runs.height]
    return Page(drawn, overview.stat_rows(found, [anchors_of(view) for view in drawn]), compared, provenance, trends)


def anchors_of(view: MachineView) -> dict[str, str]:
    """Pair -> the anchor of its section."""
    return {pair.results.name: pair.id for pair in view.pairs}


def render(
    found: Sequence[Machine],
    provenance: Provenance,
    history: Sequence[History] = (),
    public: Sequence[SourcedCase] = (),
) -> str:
    """The whole page as text."""
    script = "".join(_asset(name) for name in SCRIPTS)
    shown = page(found, provenance, history, public)
    numbered = itertools.count()

    def drawings(chart: Chart) -> Markup:
        return drawing.drawings(chart.spec, f"c{next(numbered)}")

    used: Counter[str] = Counter()

    def unique(label: str) -> str:
        """A label that no other region of the page has."""
        used[label] += 1
        return label if used[label] == 1 else f"{label} ({used[label]})"

    environment = _environment()
    # Globals, for macros see those alone.
    environment.globals.update(drawings=drawings, unique=unique)
    empty = [topic.id for topic in topics.TOPICS if topics.nothing_in(topic, shown.machines)]
    return environment.get_template("page.html.j2").render(
        machines=shown.machines,
        stats=shown.stats,
        stat_columns=overview.columns_of(shown.stats),
        beside=shown.beside,
        provenance=provenance,
        history=shown.history,
        **history_charts.RULE,
        topics=topics.TOPICS,
        empty=empty if shown.history else [*empty, "history"],
        no_history=topics.NO_HISTORY,
        rule=summary.RULE,
        # These are our own files; nothing of a record is in them.
        style=Markup(style()),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=_policy_hash(script),
    )


def style() -> str:
    """The page's styles, for the pages beside it too."""
    return "".join(_asset(name) for name in STYLES)


def _policy_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files("serveproof.report") / "templates" / name).read_text(encoding="utf-8")


def templates_of(package: str) -> jinja2.Environment:
    """The templates of a package: every value escaped, an unknown name an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _environment() -> jinja2.Environment:
    environment = templates_of("serveproof.report")
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
        breakable=words.breakable,
        badge=words.badge,
        gate_badge=words.gate_badge,
    )
    environment.globals.update(
        figure=numbers.figure,
        bounds=numbers.bounds,
        bound=words.bound,
        timing_rows=words.timing_rows,
        machine_rows=words.machine_rows,
        placed=jobs.placed,
        called=summary.called,
        anchors_of=anchors_of,
        ceiling_rows=words.ceiling_rows,
    )
    return environment
