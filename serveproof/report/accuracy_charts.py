"""Charts of the accuracy section: each precision against bf16 and the gate, its losses window by window, and what each
layer's projections cost when quantized alone."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from serveproof.accuracy_records import PerplexityRecord, SensitivityMap
from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import significant
from serveproof.results import Verdict

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
    scale, ticks = charts.increases(frame["percent"], 10)
    x = alt.X("percent:Q", title="perplexity relative to bf16 (%; right is worse)", scale=scale).axis(**ticks)
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


def sensitivity(found: SensitivityMap | None) -> Chart | None:
    """A heat map: a column a layer, a row a kind of projection, the colour what it costs alone."""
    if found is None or not found.cells:
        return None
    rows = [{"layer": one.layer, "kind": one.kind, "micronats": 1e6 * one.kl_nats} for one in found.cells]
    frame = pl.DataFrame(rows)
    kinds = frame["kind"].unique(maintain_order=True).to_list()
    worst = frame.sort("micronats", descending=True).head(3).to_dicts()
    # one hue from faint to full: opacity follows the page's own light and dark
    layer = (
        charts.base(frame)
        .mark_rect(fill=charts.OPTIMIZED, stroke=charts.GRID, strokeWidth=0.5)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("kind:N", title=None, scale=alt.Scale(domain=kinds)),
            opacity=alt.Opacity(
                "micronats:Q",
                scale=alt.Scale(type="sqrt", range=[0.04, 1.0]),
                legend=alt.Legend(title="KL, millionths of a nat a token", direction="horizontal"),
            ),
            tooltip=["layer:O", "kind:N", "micronats:Q"],
        )
    )
    words = (
        f"What each projection costs in {found.precision}",
        f"KL(fp32 ‖ fp32 but for this projection in {found.precision}), mean over {found.tokens} tokens, in "
        "millionths of a nat a token; the fuller the colour, the more it costs. One text, no interval: for finding the "
        "layers to keep, not for a verdict.",
        f"Cost of {found.precision} by layer and projection; the largest: "
        + "; ".join(f"layer {one['layer']} {one['kind']} {significant(one['micronats'])} µnat" for one in worst),
    )
    columns = [
        Column("layer", "layer"),
        Column("kind", "projection"),
        Column("micronats", "KL (millionths of a nat a token)"),
    ]
    return charts.build([layer], 30 * len(kinds) + 40, words, frame, columns)
