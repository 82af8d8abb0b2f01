"""The ladder as a waterfall: what each optimization adds to, or takes from, the rung before it."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import significant
from serveproof.serving_results import LadderRecord

GAIN, LOSS = "gain", "loss"


def steps(record: LadderRecord) -> list[dict[str, Any]]:
    """A row for each rung that was measured: where its bar begins and ends, in output tokens/s."""
    rows: list[dict[str, Any]] = []
    before = 0.0
    for rung in record.rungs:
        if rung.output_tokens_per_s is None:
            continue
        now = rung.output_tokens_per_s
        rows.append(
            {
                "rung": rung.name,
                "before": before,
                "rate": now,
                "change": GAIN if now >= before else LOSS,
                "factor": now / before if before else None,
                "label": f"{now / before:.2f}×" if before else significant(now),
            }
        )
        before = now
    return rows


def waterfall(record: LadderRecord) -> Chart | None:
    """The chart, or None when no rung was measured."""
    rows = steps(record)
    if not rows:
        return None
    frame = pl.DataFrame(rows, schema_overrides={"factor": pl.Float64}, infer_schema_length=None)
    y = alt.Y("rung:N", scale=alt.Scale(domain=frame["rung"].to_list()), title=None)
    scale = alt.Scale(domain=[GAIN, LOSS], range=[charts.OPTIMIZED, charts.LIMIT])
    bars = charts.base(frame)
    layers = [
        bars.mark_bar(height=15, opacity=0.85).encode(
            x=alt.X("before:Q", title="output tokens/s", axis=alt.Axis(format="~s", tickCount=6)),
            x2="rate:Q",
            y=y,
            color=alt.Color("change:N", scale=scale),
            tooltip=["rung:N", "rate:Q", "factor:Q"],
        ),
        bars.mark_tick(thickness=2.5, size=19, color=charts.INK, aria=False).encode(x="rate:Q", y=y),
        bars.mark_text(align="left", dx=6, fill=charts.INK, aria=False)
        .encode(x=alt.X("end:Q"), y=y, text="label:N")
        .transform_calculate(end="max(datum.before, datum.rate)"),
    ]
    caption = (
        "Each bar goes from the rung before to this one; its upright mark is this rung's output tokens/s, the number "
        "the factor over the rung before. Every rung keeps what the ones before it added. One run a rung."
    )
    alt_text = "Output tokens/s by rung: " + "; ".join(f"{row['rung']} {significant(row['rate'])}" for row in rows)
    columns = [
        Column("rung", "rung"),
        Column("rate", "output tokens/s"),
        Column("factor", "factor over the rung before"),
    ]
    return charts.build(layers, 27 * len(rows), (f"Ladder: {record.model}", caption, alt_text), frame, columns)
