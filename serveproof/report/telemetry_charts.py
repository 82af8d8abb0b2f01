"""What the machine did while load tests ran: power and output rate, second by second."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.data import LoadTest
from serveproof.report.numbers import significant

MOST_SECONDS_DRAWN = 600
# column of the telemetry table -> (title, axis)
FIGURES = {
    "power_w": ("Power", "power (W)"),
    "output_tokens_per_s": ("Output rate", "output tokens/s"),
}


def of(tests: Sequence[LoadTest]) -> list[Chart]:
    """A chart a test and figure that was sampled."""
    drawn = [_figure(test, column) for test in tests for column in FIGURES]
    return [chart for chart in drawn if chart is not None]


def _figure(test: LoadTest, column: str) -> Chart | None:
    if test.telemetry.is_empty():
        return None
    first = test.record.runs[0].number
    frame = test.telemetry.filter((pl.col("run") == first) & (pl.col("second") >= 0)).head(MOST_SECONDS_DRAWN)
    frame = frame.select("second", column).drop_nulls()
    if frame.is_empty():
        return None
    kind, axis = FIGURES[column]
    title = f"{kind}, {test.record.scenario.replace('_', ' ')} of {test.record.server}"
    line = (
        charts.base(frame)
        .mark_line(strokeWidth=1.8, stroke=charts.OPTIMIZED, aria=False)
        .encode(
            x=alt.X("second:Q", title="seconds since the start"),
            y=alt.Y(f"{column}:Q", title=axis, scale=alt.Scale(zero=True)).axis(format="~s", tickCount=5),
        )
    )
    most, mean = float(frame[column].max()), float(frame[column].mean())  # type: ignore[arg-type]
    words = (
        title,
        "The first run, one sample a second as it was read; single readings, so no interval.",
        f"{title} over time: mean {significant(mean)}, at most {significant(most)}",
    )
    return charts.build([line], 150, words, frame, [Column("second", "second"), Column(column, axis)])
