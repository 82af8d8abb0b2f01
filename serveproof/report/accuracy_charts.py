"""Charts of the accuracy section: each precision against bf16 and the gate, and its losses window by window."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import significant
from serveproof.results import PerplexityRecord, Verdict

MOST_WINDOWS_DRAWN = 1500


def relative_to_bf16(record: PerplexityRecord, gates: dict[str, Verdict]) -> Chart | None:
    """Perplexity of each precision relative to bf16, with its interval and the gate's limit."""
    found: list[dict[str, Any]] = []
    for one in record.precisions:
        relative, verdict = one.relative_to_bf16, gates.get(one.precision)
        found.append(
            {
                "precision": one.precision,
                "percent": relative.value,
                "low": relative.low,
                "high": relative.high,
                "gate": verdict.upper if verdict else None,
                "verdict": verdict.verdict.replace("_", " ") if verdict else "not judged",
            }
        )
    if not found:
        return None
    frame = pl.DataFrame(found, schema_overrides={"gate": pl.Float64}, infer_schema_length=None)
    y = alt.Y("precision:N", scale=alt.Scale(domain=frame["precision"].to_list()), title=None)
    x = alt.X(
        "percent:Q", title="perplexity relative to bf16 (%; right is worse)", scale=alt.Scale(zero=True, padding=10)
    ).axis(tickCount=6)
    limits = frame.filter(pl.col("gate").is_not_null()).select("gate").unique()
    layers = [
        charts.base(pl.DataFrame({"zero": [0.0]})).mark_rule(stroke=charts.MUTED, aria=False).encode(x="zero:Q"),
        charts.base(limits).mark_rule(strokeDash=[6, 3], strokeWidth=2, stroke=charts.LIMIT).encode(x="gate:Q"),
        charts.base(limits.with_columns(pl.lit("gate").alias("word")))
        .mark_text(align="right", dx=-4, dy=8, baseline="top", fill=charts.LIMIT, aria=False)
        .encode(x="gate:Q", y=alt.value(0), text="word:N"),
        charts.base(frame).mark_rule(strokeWidth=2.5, stroke=charts.OPTIMIZED).encode(x="low:Q", x2="high:Q", y=y),
        charts.base(frame)
        .mark_point(filled=True, shape="diamond", size=80, opacity=1, fill=charts.OPTIMIZED)
        .encode(x=x, y=y, tooltip=["precision:N", "percent:Q", "low:Q", "high:Q", "gate:Q", "verdict:N"]),
    ]
    words = (
        "Perplexity of each precision against bf16",
        "Diamond: perplexity ÷ bf16's perplexity − 1. Line through it: its 95 % interval, from the paired differences "
        "of the same tokens. Red dashed line: the accuracy gate.",
        "Perplexity relative to bf16: "
        + "; ".join(f"{row['precision']} {significant(row['percent'])} %, {row['verdict']}" for row in found),
    )
    columns = [
        Column("precision", "precision"),
        Column("percent", "relative to bf16 (%)"),
        Column("low", "interval low (%)"),
        Column("high", "interval high (%)"),
        Column("gate", "gate (%)"),
        Column("verdict", "gate's verdict"),
    ]
    return charts.build(layers, 28 * len(found), words, frame, columns)


def by_window(deltas: pl.DataFrame) -> Chart | None:
    """Mean loss of each window minus the same window's in fp32: shows whether a mean rests on a few windows."""
    if deltas.is_empty():
        return None
    kept = deltas.gather_every(-(-deltas.height // MOST_WINDOWS_DRAWN))
    order = deltas["precision"].unique(maintain_order=True).to_list()
    means = deltas.group_by("precision", maintain_order=True).agg(pl.col("delta_nats").mean())
    y = alt.Y("precision:N", scale=alt.Scale(domain=order), title=None)
    x = alt.X("delta_nats:Q", title="loss − fp32's loss (nats a token; right is worse)").axis(format="~g", tickCount=6)
    layers = [
        charts.base(pl.DataFrame({"zero": [0.0]})).mark_rule(stroke=charts.MUTED, aria=False).encode(x="zero:Q"),
        charts.base(kept)
        .mark_point(shape="circle", size=26, opacity=0.5, strokeWidth=1.2, stroke=charts.OPTIMIZED, aria=False)
        .encode(x=x, y=y, tooltip=["precision:N", "window:O", "delta_nats:Q"]),
        charts.base(means).mark_tick(thickness=3, size=18, color=charts.INK, aria=False).encode(x="delta_nats:Q", y=y),
    ]
    drawn = "Every window" if kept.height == deltas.height else f"{kept.height} of {deltas.height} windows, evenly"
    words = (
        "Loss difference to fp32, window by window",
        f"{drawn}: one circle a text window, the mean over the tokens that it counts; upright bar: the mean of the "
        "windows. The spread is what the standard error in the table is computed from.",
        "Loss difference to fp32 by window, in nats a token; means: "
        + ", ".join(f"{precision} {significant(mean)}" for precision, mean in means.iter_rows()),
    )
    columns = [
        Column("precision", "precision"),
        Column("window", "window"),
        Column("delta_nats", "difference to fp32 (nats a token)"),
    ]
    return charts.build(layers, 28 * len(order), words, kept, columns)
