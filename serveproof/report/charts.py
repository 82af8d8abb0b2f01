"""The charts of the report: each function takes records or a frame and gives a Chart, its drawing and its table alike.

Colours are CSS variables with a fallback, so one drawing serves light, dark and print; every series has a shape or a
label of its own beside its colour. Text from records goes into data values only, never into a field name or an
expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl
from altair.utils import schemapi

from serveproof.report.numbers import significant

BASELINE, OPTIMIZED = "var(--baseline, #b35900)", "var(--optimized, #0072b2)"
INK, MUTED, GRID = "var(--ink, #1c1f23)", "var(--muted, #5b6470)", "var(--line, #d9dde2)"
RANGE, LIMIT, THIRD = "var(--range, #c9d6e3)", "var(--bad, #b3261e)", "var(--third, #7a5195)"
SIDES = alt.Scale(domain=["baseline", "optimized"], range=[BASELINE, OPTIMIZED])
SIDE_SHAPES = alt.Scale(domain=["baseline", "optimized"], range=["circle", "diamond"])


@dataclass(frozen=True)
class Column:
    """A column of a chart's table: the frame's column and the heading, unit included."""

    name: str
    heading: str


@dataclass(frozen=True)
class Chart:
    """One drawing, its words, and the data it draws as a table. `rows` holds numbers as text."""

    title: str
    caption: str
    alt_text: str
    spec: dict[str, Any]
    headings: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def theme(width: int) -> dict[str, Any]:
    """The Vega-Lite configuration that all charts of that width share."""
    narrow = width < 400
    words = {"labelColor": MUTED, "titleColor": INK, "labelFontSize": 10 if narrow else 11, "titleFontSize": 11.5}
    return {
        "background": "transparent",
        # of figures without a format of their own: what a mark tells under the mouse, and axes
        "numberFormat": ".4~r",
        "view": {"stroke": GRID},
        # The reader's letters may be wider than those that the drawing was measured with.
        "padding": {"left": 30, "right": 10, "top": 5, "bottom": 5},
        "axis": {
            **words,
            "titleFontWeight": 500,
            "titlePadding": 8,
            "gridColor": GRID,
            "gridOpacity": 0.7,
            "domainColor": GRID,
            "tickColor": GRID,
            "labelLimit": round((0.53 if narrow else 0.4) * width),
            "labelOverlap": True,
        },
        "legend": {
            **words,
            "orient": "top",
            "title": None,
            "symbolStrokeWidth": 2,
            "labelLimit": round(0.75 * width),
            "offset": 6,
            "symbolSize": 60,
            "columnPadding": 20,
            "layout": {"top": {"direction": "vertical", "anchor": "start"}},
        },
        "text": {"fill": INK, "fontSize": 11},
        "rule": {"stroke": MUTED},
    }


def increases(percents: Iterable[float], padding: int) -> tuple[alt.Scale, dict[str, Any]]:
    """(scale, ticks) of increases in percent: linear; logarithmic above 2 where one is beyond 40, so that the others
    can still be told apart."""
    if max(map(abs, percents)) <= 40:
        return alt.Scale(zero=True, padding=padding), {"tickCount": 6}
    return alt.Scale(type="symlog", constant=2, padding=padding), {"values": [0, 2, 10, 100, 1000, 10000]}


def build(
    layers: Sequence[alt.Chart],
    height: int,
    words: tuple[str, str, str],
    frame: pl.DataFrame,
    columns: Sequence[Column],
) -> Chart:
    """Put the layers together as one Chart. words: title, caption, alt text."""
    title, caption, alt_text = words
    # Heights are counted here, not left to Vega-Lite's steps; serveproof.report.drawing sets the width.
    drawing = alt.layer(*layers).properties(
        height=height,
        description=alt_text,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    spec = drawing.to_dict(validate=False)
    spec.pop("config", None)
    rows = [[_cell(value) for value in row] for row in frame.select([one.name for one in columns]).iter_rows()]
    numeric = [frame.schema[one.name].is_numeric() for one in columns]
    return Chart(title, caption, alt_text, spec, [one.heading for one in columns], rows, numeric)


def base(frame: pl.DataFrame) -> alt.Chart:
    """A chart over the frame's rows, inlined as plain values."""
    # Rows are not held against Vega-Lite's schema one by one: that took half of a page's time, and any row is fine.
    with schemapi.debug_mode(False):
        return alt.Chart(alt.Data(values=frame.to_dicts()))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return significant(value, 5)
    if isinstance(value, list):
        return ", ".join(_cell(one) for one in value)
    return str(value)


def side_color(legend: bool = True) -> alt.Color:
    """Colour by side; always used together with side_shape or a label."""
    return alt.Color("side:N", scale=SIDES, legend=alt.Legend() if legend else None)


def side_shape() -> alt.Shape:
    """Shape by side."""
    return alt.Shape("side:N", scale=SIDE_SHAPES)
