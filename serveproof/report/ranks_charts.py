"""Charts of several ranks: bandwidth between peers, collectives by size, hand-over against recompute, experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from serveproof.distributed_records import CollectivePoint, RankedRecord
from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import figure

WAYS = [charts.OPTIMIZED, charts.BASELINE, charts.THIRD, charts.MUTED]
# powers of two by their own units
BYTES = (
    "datum.value >= 1048576 ? format(datum.value / 1048576, '~g') + ' MiB' : "
    "datum.value >= 1024 ? format(datum.value / 1024, '~g') + ' KiB' : format(datum.value, '~g') + ' B'"
)


def _way() -> alt.Color:
    """A colour a way; names are long, so two stand in a row, apart: a browser draws them wider than was reckoned."""
    return alt.Color("way:N", scale=alt.Scale(range=WAYS), legend=alt.Legend(columns=2, columnPadding=32))


def between(record: RankedRecord) -> list[Chart]:
    """Every chart of what ranks do with each other that the record has something for."""
    found = (matrix(record), all_reduce(record), others(record), hand_over(record))
    return [chart for chart in found if chart is not None]


def experts(record: RankedRecord) -> list[Chart]:
    """Every chart of layers of experts that the record has something for."""
    found = expert_layers(record)
    return [found] if found else []


def matrix(record: RankedRecord) -> Chart | None:
    """Bandwidth from each rank to each other."""
    if record.matrix is None:
        return None
    rows: list[dict[str, Any]] = [
        {"source": f"from {source}", "target": f"to {target}", "rate": rate, "label": figure(rate, "bytes/s")}
        for source, line in enumerate(record.matrix.bandwidth_bytes_per_s)
        for target, rate in enumerate(line)
        if rate is not None
    ]
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    limit = record.matrix.limit_bytes_per_s
    places = {"x": alt.X("target:N", title=None, axis=alt.Axis(labelAngle=0)), "y": alt.Y("source:N", title=None)}
    # by opacity: a scale of colours can not go between CSS variables
    scale = alt.Scale(domain=[0, limit or max(row["rate"] for row in rows)], range=[0.05, 0.6])
    cells = charts.base(frame)
    layers = [
        cells.mark_rect(color=charts.OPTIMIZED).encode(
            **places,
            opacity=alt.Opacity("rate:Q", scale=scale, legend=None),
            tooltip=["source:N", "target:N", "rate:Q"],
        ),
        cells.mark_text(fill=charts.INK, aria=False).encode(**places, text="label:N"),
    ]
    told = f"; the links of one GPU carry {figure(limit, 'bytes/s')} one way" if limit else "; no link's limit is known"
    words = (
        "Bandwidth between ranks",
        f"{record.matrix.how}{told}. One figure a pair of ranks, without an interval.",
        f"Bandwidth by pair of ranks: {_listed(rows)}",
    )
    columns = [Column("source", "from"), Column("target", "to"), Column("rate", "bytes/s")]
    return charts.build(layers, 34 * record.world + 30, words, frame, columns)


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"{row['source']} {row['target']} {row['label']}" for row in rows[:8])


def all_reduce(record: RankedRecord) -> Chart | None:
    """Time of an all-reduce by size, a line each way of making it."""
    points = [(one.by, one) for one in record.collectives if one.collective == "all_reduce"]
    caption = "All-reduce of bfloat16, the slowest rank's time with its 95 % interval; checked exactly at each size."
    return _by_size(
        points, ("All-reduce by size", caption, "Time of an all-reduce against its bytes, one line a way of making it")
    )


def others(record: RankedRecord) -> Chart | None:
    """Time of the other collectives by size, a line each."""
    points = [(one.collective, one) for one in record.collectives if one.collective != "all_reduce"]
    caption = (
        f"bfloat16 over {record.backend}, the whole tensor's bytes, the slowest rank's time with its 95 % interval; "
        "checked exactly before."
    )
    return _by_size(
        points, ("Other collectives by size", caption, "Time of a collective against its bytes, one line each")
    )


def _by_size(points: Sequence[tuple[str, CollectivePoint]], words: tuple[str, str, str]) -> Chart | None:
    rows = [
        {
            "way": way.replace("_", " "), "size": one.bytes, "us": one.time.value, "low": one.time.low,
            "high": one.time.high, "bus": one.bus_bandwidth_bytes_per_s,
        }
        for way, one in points
    ]  # fmt: skip
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    base = charts.base(frame)
    encoding = {
        "x": alt.X(
            "size:Q",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=sorted({one.bytes for _, one in points}), labelExpr=BYTES),
            title="size",
        ),
        "y": alt.Y("us:Q", scale=alt.Scale(type="log"), title="µs"),
        "color": _way(),
    }
    layers = [
        base.mark_line(opacity=0.7).encode(**encoding),
        base.mark_rule(aria=False).encode(x=encoding["x"], y="low:Q", y2="high:Q", color=encoding["color"]),
        base.mark_point(size=55, filled=True).encode(
            **encoding, shape=alt.Shape("way:N", legend=None), tooltip=["way:N", "size:Q", "us:Q", "bus:Q"]
        ),
    ]
    columns = [
        Column("way", "by"),
        Column("size", "bytes"),
        Column("us", "µs"),
        Column("low", "interval low (µs)"),
        Column("high", "interval high (µs)"),
        Column("bus", "bus bandwidth, bytes/s"),
    ]
    return charts.build(layers, 240, words, frame, columns)


def hand_over(record: RankedRecord) -> Chart | None:
    """Time to the decode worker's first token, by prompt length, both ways."""
    rows: list[dict[str, Any]] = [
        {"prompt": str(one.prompt_tokens), "way": way, "ms": time.value, "low": time.low, "high": time.high}
        for one in record.hand_overs
        for way, time in (("handed over", one.handed_over), ("computed again", one.recomputed))
    ]
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    base = charts.base(frame)
    places = {
        "y": alt.Y("prompt:N", sort=None, title="prompt tokens"),
        "yOffset": alt.YOffset("way:N", sort=["handed over", "computed again"]),
    }
    scale = alt.Scale(domain=["handed over", "computed again"], range=[charts.OPTIMIZED, charts.BASELINE])
    layers = [
        base.mark_bar(opacity=0.8).encode(
            **places, x=alt.X("ms:Q", title="ms to the first token"), color=alt.Color("way:N", scale=scale),
            tooltip=["prompt:N", "way:N", "ms:Q", "low:Q", "high:Q"],
        ),
        base.mark_rule(aria=False).encode(**places, x="low:Q", x2="high:Q"),
    ]  # fmt: skip
    caption = (
        "At the decode worker, from the end of the prefill to its first token: the pages put into its cache and the "
        "last page's tokens computed, against the whole prompt computed again. 95 % intervals."
    )
    told = "; ".join(f"{row['prompt']} tokens {row['way']} {figure(float(row['ms']), 'ms')}" for row in rows)
    columns = [
        Column("prompt", "prompt tokens"), Column("way", "way"), Column("ms", "ms"), Column("low", "low"),
        Column("high", "high"),
    ]  # fmt: skip
    words = ("Hand-over of the cache against recompute", caption, told)
    return charts.build(layers, 60 * len(record.hand_overs) + 20, words, frame, columns)


def expert_layers(record: RankedRecord) -> Chart | None:
    """Tokens/s of a layer of experts against the traffic's imbalance, by placement and batching."""
    rows = [
        {
            "way": f"{one.placement}, {one.batching}".replace("_", " "), "traffic": one.traffic,
            "imbalance": one.imbalance, "rate": one.tokens_per_s, "exchange": 100 * one.exchange_share,
        }
        for one in record.expert_layers
    ]  # fmt: skip
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    base = charts.base(frame)
    encoding = {
        "x": alt.X("imbalance:Q", title="busiest expert's rows over the mean", scale=alt.Scale(zero=False)),
        "y": alt.Y("rate:Q", title="tokens/s, all ranks", axis=alt.Axis(format="~s")),
        "color": _way(),
    }
    layers = [
        base.mark_line(opacity=0.6).encode(**encoding),
        base.mark_point(size=60, filled=True).encode(
            **encoding,
            shape=alt.Shape("way:N", legend=None),
            tooltip=["way:N", "traffic:N", "imbalance:Q", "rate:Q", "exchange:Q"],
        ),
    ]
    caption = (
        "Router at the tokens: chosen rows travel by all-to-all. Router at the experts: every token travels, sums come "
        "back. Batching: one grouped product, or a product an expert. Each checked against one rank."
    )
    columns = [
        Column("way", "placement, batching"), Column("traffic", "traffic"), Column("imbalance", "imbalance"),
        Column("rate", "tokens/s"), Column("exchange", "exchange alone, % of the time"),
    ]  # fmt: skip
    words = (
        "A layer of experts by imbalance",
        caption,
        "Tokens/s against imbalance, one line a placement and batching",
    )
    return charts.build(layers, 240, words, frame, columns)
