"""Charts of profiles: the icicle of a step, every kernel under the measured ceilings, the allocator over time."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from serveproof.profile_records import Profile
from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import scaled, significant
from serveproof.results import SIDES, Ceilings

ROW_HEIGHT, LABELLED = 19, 0.07
KINDS = {
    "kernel": charts.OPTIMIZED,
    "copy": charts.THIRD,
    "operation": charts.OPTIMIZED,
    "launch": charts.BASELINE,
    "wait": charts.LIMIT,
    "python": charts.BASELINE,
    "range": charts.RANGE,
}


def icicle(profile: Profile, name: str) -> Chart | None:
    """A call's frames from the top down, each as wide as its time; None without frames."""
    if not profile.flames:
        return None
    rows = [
        {
            "name": one.name,
            "kind": one.kind,
            "depth": one.depth,
            "start": round(100 * one.start, 3),
            "end": round(100 * (one.start + one.width), 3),
            "percent": round(100 * one.width, 3),
            "top": one.depth * ROW_HEIGHT,
            "bottom": (one.depth + 1) * ROW_HEIGHT - 1,
        }
        for one in profile.flames
    ]
    frame = pl.DataFrame(rows)
    height = (max(one.depth for one in profile.flames) + 1) * ROW_HEIGHT
    x = alt.X("start:Q", title="share of a call (%)", scale=alt.Scale(domain=[0, 100])).axis(tickCount=6)
    top = alt.Y("top:Q", title=None, axis=None, scale=alt.Scale(domain=[0, height], reverse=True))
    there = [kind for kind in KINDS if kind in set(frame["kind"])]
    color = alt.Color("kind:N", scale=alt.Scale(domain=there, range=[KINDS[kind] for kind in there]))
    boxes = (
        charts.base(frame)
        .mark_rect(opacity=0.55, stroke="var(--paper, #ffffff)", strokeWidth=1, aria=False)
        .encode(x=x, x2="end:Q", y=top, y2="bottom:Q", color=color, tooltip=["name:N", "kind:N", "percent:Q"])
    )
    labels = (
        charts.base(
            frame.filter(pl.col("percent") >= 100 * LABELLED).with_columns(
                (pl.col("top") + ROW_HEIGHT / 2).alias("middle"),
                # about six characters a hundredth of the width: what is longer would lie over the next box
                pl.struct("name", "percent")
                .map_elements(lambda row: _short(row["name"], int(row["percent"] * 0.62)), return_dtype=pl.String)
                .alias("label"),
            )
        )
        .mark_text(align="left", dx=3, fontSize=10, baseline="middle", aria=False)
        .encode(x=x, y=alt.Y("middle:Q", axis=None, scale=alt.Scale(domain=[0, height], reverse=True)), text="label:N")
    )
    widest = sorted((one for one in profile.flames if one.depth), key=lambda one: -one.width)[:6]
    words = (
        f"Where a call of {name} spends its time",
        "From the top down: each box is a function, operation or kernel, as wide as the time of all that is under it. "
        "While the device works, the time is its kernels', under the function that launched them. Recorded with "
        "Python's functions followed, which slows the host: widths are shares, the tables have the times.",
        f"Icicle of {name}: " + "; ".join(f"{one.name} {significant(100 * one.width)} %" for one in widest),
    )
    columns = [
        Column("depth", "depth"),
        Column("name", "name"),
        Column("kind", "kind"),
        Column("percent", "share (%)"),
    ]
    return charts.build([boxes, labels], height, words, frame, columns)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: max(1, most - 1)]}…"


def kernels(profiles: dict[str, Profile], ceilings: Ceilings, name: str) -> Chart | None:
    """Every kernel or operation whose work is known as a point under the measured ceilings; None without any."""
    found = [row for side in SIDES if side in profiles for row in _points(profiles[side], side)]
    bandwidth = ceilings.read_bandwidth_bytes_per_s
    if not found or bandwidth <= 0:
        return None
    ridges = [rate / bandwidth for rate in ceilings.matmul_flops_per_s.values()]
    intensities = [row["flops"] / row["bytes"] for row in found if row["flops"] and row["bytes"]]
    left, right = min([*intensities, *ridges]) / 8, max([*intensities, *ridges]) * 4
    for row in found:
        row["intensity"] = row["flops"] / row["bytes"] if row["flops"] and row["bytes"] else left
        row["rate"] = (row["flops"] or left * row["bytes"]) / (row["ms"] / 1e3)
    size, unit = scaled(max([*ceilings.matmul_flops_per_s.values(), *(row["rate"] for row in found)]), "flop/s")
    frame = pl.DataFrame(found, infer_schema_length=None).with_columns(pl.col("rate") / size)
    lines: list[dict[str, Any]] = []
    for dtype, rate in sorted(ceilings.matmul_flops_per_s.items()):
        at = (left, rate / bandwidth, right)
        rates = (left * bandwidth, rate, rate)
        lines += [{"ceiling": dtype, "intensity": x, "rate": y / size} for x, y in zip(at, rates, strict=True)]
    x = alt.X(
        "intensity:Q", scale=alt.Scale(type="log", domain=[left, right], nice=False), title="FLOP/byte (log scale)"
    ).axis(format="~g", tickCount=6)
    y = alt.Y("rate:Q", scale=alt.Scale(type="log", nice=False, padding=10), title=f"{unit} (log scale)").axis(
        format="~g", tickCount=6
    )
    roof = (
        charts.base(pl.DataFrame(lines))
        .mark_line(strokeWidth=1.6, stroke=charts.MUTED)
        .encode(x=x, y=y, strokeDash=alt.StrokeDash("ceiling:N", legend=alt.Legend(symbolType="stroke")))
    )
    points = (
        charts.base(frame)
        .mark_point(filled=True, opacity=0.75)
        .encode(
            x=x,
            y=y,
            color=charts.side_color(),
            shape=charts.side_shape(),
            size=alt.Size("share:Q", scale=alt.Scale(domain=[0, 100], range=[20, 320]), legend=None),
            tooltip=["side:N", "name:N", "source:N", "intensity:Q", "rate:Q", "share:Q"],
        )
    )
    words = (
        f"Kernels of {name} under the measured ceilings",
        "Each point is a kernel, on a CPU an operation, as large as its share of the call. Work: by torch's formulas "
        "and the fewest bytes, or, where it says counters, by the GPU's own. Points at the left edge compute nothing: "
        "their height against the slope is their bandwidth.",
        f"Roofline of {name}: " + "; ".join(f"{row['side']} {row['name']}" for row in found[:8]),
    )
    columns = [
        Column("side", "side"),
        Column("name", "kernel"),
        Column("source", "work by"),
        Column("intensity", "intensity (FLOP/byte)"),
        Column("rate", f"achieved ({unit})"),
        Column("share", "share of the call (%)"),
    ]
    return charts.build([roof, points], 280, words, frame, columns)


def _points(profile: Profile, side: str) -> list[dict[str, Any]]:
    """By the GPU's counters where there are any, else by the operations' formulas."""
    whole_ms = sum(row.time_ms for row in profile.counters)
    counted = [
        (row.kernel, "counters", row.flops or 0.0, row.dram_bytes, row.time_ms, row.time_ms / whole_ms)
        for row in profile.counters
        if row.time_ms > 0
    ]
    told = [
        (row.name, "formulas", row.flops or 0.0, row.bytes, row.time_ms, row.share)
        for row in profile.hotspots
        if row.time_ms > 0
    ]
    return [
        {"side": side, "name": name, "source": source, "flops": flops, "bytes": size, "ms": ms, "share": 100 * share}
        for name, source, flops, size, ms, share in counted or told
        if size
    ]


def memory(profiles: dict[str, Profile], name: str) -> Chart | None:
    """Bytes allocated above the start over a call, both sides; None where nothing is allocated."""
    rows = [
        {"side": side, "ms": at, "megabytes": size / 1e6}
        for side, profile in profiles.items()
        if profile.memory
        for at, size in profile.memory.timeline
    ]
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    line = (
        charts.base(frame)
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=alt.X("ms:Q", title="time in the call, with the profiler (ms)").axis(format="~g", tickCount=6),
            y=alt.Y("megabytes:Q", title="allocated above the start (MB)").axis(format="~s", tickCount=5),
            color=charts.side_color(),
            strokeDash=alt.StrokeDash("side:N", scale=alt.Scale(domain=list(SIDES))),
        )
    )
    peaks = {side: one.memory.peak_bytes / 1e6 for side, one in profiles.items() if one.memory}
    words = (
        f"Memory during a call of {name}",
        "What the allocator has given out and not got back since the call began.",
        "Peak in megabytes: " + ", ".join(f"{side} {significant(peak)}" for side, peak in peaks.items()),
    )
    columns = [Column("side", "side"), Column("ms", "time (ms)"), Column("megabytes", "allocated (MB)")]
    return charts.build([line], 160, words, frame, columns)
