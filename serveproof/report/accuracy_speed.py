"""Perplexity against speed: of each precision as it was evaluated, and of each rung of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from serveproof.accuracy_records import PerplexityRecord
from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import significant
from serveproof.serving_results import LadderRecord


def precisions(record: PerplexityRecord) -> Chart | None:
    """Each precision's perplexity against bf16 over the speed at which it was evaluated; None without any."""
    rows = [
        {
            "name": one.precision,
            "rate": one.tokens_per_s,
            "percent": one.relative_to_bf16.value,
            "low": one.relative_to_bf16.low,
            "high": one.relative_to_bf16.high,
        }
        for one in record.precisions
    ]
    caption = (
        "Right is faster, lower is better; the upright line is the perplexity's 95 % interval, the speed is one run's, "
        "without an interval. Speed of the evaluation, in which quantized weights are computed in bf16: it shows what "
        "the evaluation cost, not what a server with such kernels would reach."
    )
    return _plane(rows, "Perplexity against speed", "relative to bf16 (%)", "evaluated (tokens/s)", caption)


def rungs(record: LadderRecord) -> Chart | None:
    """Each rung's perplexity against the first one's over its output rate; None where no rung has a perplexity."""
    rows = [
        {
            "name": one.name,
            "rate": one.output_tokens_per_s,
            "percent": one.perplexity_change_percent,
            "low": None,
            "high": None,
        }
        for one in record.rungs
        if one.output_tokens_per_s is not None and one.perplexity_change_percent is not None
    ]
    caption = (
        "Right is faster, lower is better. A point is a rung of the ladder with all that those before it added, its "
        "perplexity through this rung's own weights and cache. One run a rung: no interval."
    )
    title = f"Perplexity against speed: ladder of {record.model}"
    return _plane(rows, title, "relative to the first rung (%)", "output tokens/s", caption)


def _plane(rows: Sequence[dict[str, Any]], title: str, up: str, right: str, caption: str) -> Chart | None:
    if not rows:
        return None
    frame = pl.DataFrame(
        rows, schema_overrides={"low": pl.Float64, "high": pl.Float64, "rate": pl.Float64}, infer_schema_length=None
    )
    x = alt.X("rate:Q", title=right, scale=alt.Scale(zero=False, padding=40, nice=True)).axis(format="~s", tickCount=5)
    scale, ticks = charts.increases(frame["percent"], 14)
    y = alt.Y("percent:Q", title=f"perplexity {up}", scale=scale).axis(**ticks)
    spread = frame.filter(pl.col("low").is_not_null())
    layers = [
        charts.base(pl.DataFrame({"zero": [0.0]})).mark_rule(stroke=charts.MUTED, aria=False).encode(y="zero:Q"),
        charts.base(spread)
        .mark_rule(strokeWidth=2, stroke=charts.OPTIMIZED, aria=False)
        .encode(x=x, y="low:Q", y2="high:Q"),
        charts.base(frame)
        .mark_point(filled=True, shape="diamond", size=70, opacity=1, fill=charts.OPTIMIZED)
        .encode(x=x, y=y, description=alt.Description("name:N")),
        charts.base(_labels(frame))
        .mark_text(align="left", dx=9, fontSize=10, limit=140, aria=False)
        .encode(x=x, y=y, text="names:N"),
    ]  # fmt: skip
    told = f"{title}: " + "; ".join(
        f"{row['name']} {significant(row['percent'])} % at {significant(row['rate'])} tokens/s" for row in rows
    )
    columns = [
        Column("name", "precision or rung"),
        Column("rate", right),
        Column("percent", f"perplexity {up}"),
        Column("low", "interval low (%)"),
        Column("high", "interval high (%)"),
    ]
    return charts.build(layers, 240, (title, caption, told), frame, columns)


def _labels(frame: pl.DataFrame) -> pl.DataFrame:
    """One name a point; points too near each other for two names share one."""
    wide = max(float(frame["rate"].max()) - float(frame["rate"].min()), 1e-9)  # type: ignore[arg-type]
    high = max(float(frame["percent"].max()) - float(frame["percent"].min()), 1e-9)  # type: ignore[arg-type]
    labels: list[dict[str, Any]] = []
    for row in frame.sort("percent", descending=True).to_dicts():
        for label in labels:
            near = abs(row["rate"] - label["rate"]) < 0.22 * wide
            if near and abs(row["percent"] - label["percent"]) < 0.08 * high:
                label["names"] += f", {row['name']}"
                break
        else:
            labels.append({"names": row["name"], "rate": row["rate"], "percent": row["percent"]})
    return pl.DataFrame(labels)
