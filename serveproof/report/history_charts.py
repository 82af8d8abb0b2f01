"""The history as charts: one a pair over its runs with intervals, one for each other figure that stepped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.data import History
from serveproof.report.numbers import moment, signed, significant
from serveproof.steps import ALARM_RATE, LEAST, Step, series_of

# A page of many pairs stays small: those that stepped come first.
MOST_DRAWN = 40
PALETTE = [charts.OPTIMIZED, charts.BASELINE, charts.THIRD, charts.MUTED]
SHAPES = ["circle", "diamond", "square", "triangle-up", "cross", "triangle-down"]


@dataclass(frozen=True)
class HistoryView:
    """What the topic shows of one kind of machine."""

    key: str
    runs: int
    sentence: str
    steps: list[Step]
    charts: list[Chart]
    left_out: int


def view(history: History) -> HistoryView:
    """The words, the steps and the charts."""
    drawn: dict[tuple[str, str], list[pl.DataFrame]] = {}
    stepped = {(step.subject, step.metric) for step in history.steps}
    for points in series_of(history.runs):
        subject, metric = points["subject"][0], points["metric"][0]
        # of a pair its speedups; what else there is only where it stepped, the rest is in the files
        if points.height > 1 and (metric == "speedup" or (subject, metric) in stepped):
            drawn.setdefault((subject.partition("/")[0], metric), []).append(points)
    moved = {(subject.partition("/")[0], metric) for subject, metric in stepped}
    order = sorted(drawn, key=lambda one: (one not in moved, one))
    found = [trend(name, metric, drawn[name, metric], history.steps) for name, metric in order[:MOST_DRAWN]]
    runs = history.runs["run"].n_unique()
    return HistoryView(
        history.key, runs, sentence(history, runs), history.steps, found, max(0, len(order) - MOST_DRAWN)
    )


def sentence(history: History, runs: int) -> str:
    """What was found, or why nothing could be."""
    if runs == 1:
        return "One run is noted; a trend begins with the second."
    if not history.tested:
        return f"No figure was measured {2 * LEAST} times alike yet, and a step needs {LEAST} runs on either side."
    if not history.steps:
        return f"No step in {history.tested} figures with {2 * LEAST} runs or more."
    count = len(history.steps)
    worse = sum(not step.better for step in history.steps)
    return (
        f"{count} {'step' if count == 1 else 'steps'} in {history.tested} figures with {2 * LEAST} runs or more: "
        f"{worse} worse, {count - worse} better."
    )


def _label(row: dict[str, Any]) -> str:
    return f"{moment(row['measured_utc']).removesuffix(' UTC')} {row['commit'][:7]}"


def _named(series: list[pl.DataFrame]) -> list[str]:
    """A name for each series: its case; and how it was measured, or on what, where that alone tells two apart."""
    cases = [points["subject"][0].partition("/")[2] for points in series]
    names = []
    for points, case in zip(series, cases, strict=True):
        row = points.row(0, named=True)
        more = [row["setting"], row["machine"]] if cases.count(case) > 1 else []
        names.append(", ".join(filter(None, [case, *more])))
    # other axes under one name of a case: nothing short tells them apart
    return [
        name if names.count(name) == 1 else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)
    ]


def trend(name: str, metric: str, series: list[pl.DataFrame], steps: list[Step]) -> Chart:
    """One figure of all of a pair's cases over its runs, with intervals and a mark at each step."""
    rows: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    names = _named(series)
    for points, title in zip(series, names, strict=True):
        for row in points.sort("measured_utc").iter_rows(named=True):
            label, sizes = _label(row), {part: row[part] for part in ("value", "low", "high")}
            rows.append({"run": label, "date": row["measured_utc"], "case": title, **sizes})
            marks += [
                {"run": label, "change": f"{signed(step.change_percent, 1)} %"}
                for step in steps
                if (step.subject, step.metric, step.date_utc, step.machine, step.setting)
                == (row["subject"], metric, row["measured_utc"], row["machine"], row["setting"])
            ]
    frame = pl.DataFrame(rows).sort("date", maintain_order=True)
    unit = series[0]["unit"][0]
    order = frame["run"].unique(maintain_order=True).to_list()
    x = alt.X("run:N", scale=alt.Scale(domain=order), title=None, axis=alt.Axis(labelAngle=-40, labelLimit=150))
    y = alt.Y("value:Q", title=f"{metric.replace('_', ' ')} ({unit})", scale=alt.Scale(zero=False))
    color = alt.Color("case:N", scale=alt.Scale(domain=names, range=_cycled(PALETTE, len(names))), legend=alt.Legend())
    shape = alt.Shape("case:N", scale=alt.Scale(domain=names, range=_cycled(SHAPES, len(names))))
    data = charts.base(frame)
    layers = [
        data.mark_line(strokeWidth=1, opacity=0.5).encode(x=x, y=y, color=color),
        data.mark_rule(strokeWidth=1.5, aria=False).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        data.mark_point(filled=True, opacity=1, size=45).encode(
            x=x, y=y, color=color, shape=shape, tooltip=["run:N", "case:N", "value:Q", "low:Q", "high:Q"]
        ),
    ]
    if marks:
        step = charts.base(pl.DataFrame(marks))
        layers += [
            step.mark_rule(strokeDash=[4, 3], stroke=charts.INK, aria=False).encode(x=x),
            step.mark_text(align="left", dx=4, fill=charts.INK, aria=False).encode(
                x=x, y=alt.value(8), text="change:N"
            ),
        ]
    stepped = f" A dashed line marks the first run after a step: {len(marks)} here." if marks else ""
    caption = f"Each run's estimate with its 95 % interval, {unit}; runs in the order of their dates.{stepped}"
    told = "; ".join(_told(points, title, unit) for points, title in zip(series, names, strict=True))
    words = (f"{name}: {metric.replace('_', ' ')} over the runs", caption, f"{metric} by run: {told}")
    columns = [
        Column("run", "run"), Column("case", "case"), Column("value", f"{metric}, {unit}"), Column("low", "low"),
        Column("high", "high"),
    ]  # fmt: skip
    return charts.build(layers, 220, words, frame, columns)


def _cycled(values: list[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]


def _told(points: pl.DataFrame, title: str, unit: str) -> str:
    first, last = (significant(points["value"][at]) for at in (0, -1))
    return f"{title} from {first} to {last} {unit} in {points.height} runs"


RULE = {"least": LEAST, "alarm_rate": ALARM_RATE}
