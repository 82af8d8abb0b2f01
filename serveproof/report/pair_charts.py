"""Charts of the kernel pairs: speedups against expectations, sample distributions, roofline, memory."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.numbers import UNITS, figure, scaled, significant
from serveproof.report.summary import CaseRow, urgency
from serveproof.results import Ceilings, MeasureCase

# More dots than this hide one another; the whole set is in samples.parquet.
MOST_SAMPLES_DRAWN = 600
EDGE_QUANTILE = 0.98
MOST_SPEEDUPS_DRAWN = 60


def speedups(rows: list[CaseRow]) -> Chart | None:
    """Every measured case's speedup with its interval, over the expectation's range; None when nothing was measured."""
    found: list[dict[str, Any]] = []
    # Of too many for one picture, those whose verdicts ask for a look are drawn.
    first = rows if len(rows) <= MOST_SPEEDUPS_DRAWN else sorted(rows, key=lambda row: urgency([row]))
    for row in first:
        if row.measured is None or row.measured.speedup is None:
            continue
        speed, verdict = row.measured.speedup, row.verdict
        lower, upper = (verdict.lower, verdict.upper) if verdict else (None, None)
        found.append(
            {
                "subject": f"{row.pair} / {row.case}",
                "speedup": speed.value,
                "low": speed.low,
                "high": speed.high,
                "lower": lower,
                "upper": upper,
                "verdict": verdict.verdict.replace("_", " ") if verdict else "not judged",
            }
        )
    if not found:
        return None
    left_out = len(found) - MOST_SPEEDUPS_DRAWN
    found = found[:MOST_SPEEDUPS_DRAWN]
    schema = {"lower": pl.Float64, "upper": pl.Float64}
    frame = pl.DataFrame(found, schema_overrides=schema, infer_schema_length=None)
    # An expectation far from every measurement would squeeze those together; it is cut off at the chart's edge.
    least, most = min(1.0, *(row["low"] for row in found)), max(1.0, *(row["high"] for row in found))
    limits = [one for row in found for one in (row["lower"], row["upper"]) if one and least / 3 < one < most * 3]
    low, high = min(least, *limits, most) / 1.08, max(most, *limits, least) * 1.08
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("speedup:Q", scale=scale, title="speedup (×, log scale)").axis(format="~g", tickCount=6)
    y = alt.Y("subject:N", scale=alt.Scale(domain=frame["subject"].to_list()), title=None)
    # An expectation that is open on one side is drawn to the edge of the chart.
    ranged = frame.filter(pl.col("lower").is_not_null() | pl.col("upper").is_not_null()).with_columns(
        pl.col("lower").fill_null(low).clip(low, high), pl.col("upper").fill_null(high).clip(low, high)
    )
    band = (
        charts.base(ranged)
        .mark_bar(fill=charts.RANGE, height=18, aria=False)
        .encode(x=alt.X("lower:Q", scale=scale), x2="upper:Q", y=y)
    )
    one = (
        charts.base(pl.DataFrame({"one": [1.0]}))
        .mark_rule(strokeDash=[4, 3], stroke=charts.INK, aria=False)
        .encode(x=alt.X("one:Q", scale=scale))
    )
    bar = (
        charts.base(frame)
        .mark_rule(strokeWidth=2.5, stroke=charts.OPTIMIZED)
        .encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y)
    )
    point = (
        charts.base(frame)
        .mark_point(shape="diamond", filled=True, size=80, fill=charts.OPTIMIZED, opacity=1)
        .encode(x=x, y=y, tooltip=["subject:N", "speedup:Q", "low:Q", "high:Q", "lower:Q", "upper:Q", "verdict:N"])
    )
    words = (
        "Speedup of every measured case",
        "Diamond: the measured speedup, baseline time ÷ optimized time. Line through it: its 95 % confidence interval "
        "(hierarchical bootstrap over processes and rounds). Pale bar: the expected range, where there is one. Dashed "
        "line: no change (1×)."
        + (
            f" {left_out} more cases, whose verdicts ask less for a look, are in the table of every case."
            if left_out > 0
            else ""
        ),
        "Speedups with confidence intervals: "
        + "; ".join(f"{row['subject']} {significant(row['speedup'])} times, {row['verdict']}" for row in found[:12]),
    )
    columns = [
        Column("subject", "case"),
        Column("speedup", "speedup (×)"),
        Column("low", "interval low (×)"),
        Column("high", "interval high (×)"),
        Column("lower", "expected, lower (×)"),
        Column("upper", "expected, upper (×)"),
        Column("verdict", "verdict"),
    ]
    return charts.build([band, one, bar, point], 30 * len(found), words, frame, columns)


def samples(case: MeasureCase, frame: pl.DataFrame) -> Chart | None:
    """Every time sample of one case against its side's median, a lane for each process; None without samples."""
    mine = frame.filter((pl.col("case") == case.case) & (pl.col("time_ms") > 0))
    if mine.is_empty():
        return None
    middle = pl.col("time_ms").median().over("side")
    mine = mine.select(
        "process", "round", "side", "order", "time_ms", (100 * (pl.col("time_ms") / middle - 1)).alias("percent")
    )
    kept = mine.sort("side", "process", "round", "order").gather_every(-(-mine.height // MOST_SAMPLES_DRAWN))
    # One far sample would press all others together: it is drawn at the edge.
    edge = max(1.5 * float(mine["percent"].abs().quantile(EDGE_QUANTILE) or 0), 0.5)
    beyond = mine.filter(pl.col("percent").abs() > edge).height
    # A path a process and side, a dot where a null breaks it: a tenth of the size of a mark a sample.
    dotted = [
        {"side": side, "process": process, "percent": value}
        for side, process, percent in kept.select("side", "process", "percent").iter_rows()
        for value in (percent, None)
    ]
    x = alt.X(
        "percent:Q",
        scale=alt.Scale(domain=[-edge, edge], clamp=True),
        title="time of a sample against its side's median (%)",
    ).axis(format="+~g", tickCount=6)
    y = alt.Y("side:N", title=None, scale=alt.Scale(domain=["baseline", "optimized"], paddingInner=0.25))
    lane = alt.YOffset("process:O", scale=alt.Scale(domain=sorted(set(mine["process"]))))
    medians = mine.group_by("side", "process", maintain_order=True).agg(
        pl.col("percent").median(), pl.col("time_ms").median()
    )
    told_of_each = pl.format("{}, process {}: median {} ms", "side", "process", pl.col("time_ms").round_sig_figs(4))
    medians = medians.with_columns(told_of_each.alias("told"))
    layers = [
        charts.base(pl.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 3], aria=False).encode(x="zero:Q"),
        charts.base(pl.DataFrame(dotted, schema_overrides={"percent": pl.Float64}))
        .mark_line(strokeCap="round", strokeWidth=5, opacity=0.5, aria=False)
        .encode(x=x, y=y, yOffset=lane, detail="process:N", order=alt.value(0), color=charts.side_color(legend=False)),
        charts.base(medians)
        .mark_tick(thickness=2.5, size=15, color=charts.INK)
        .encode(x="percent:Q", y=y, yOffset=lane, description="told:N"),
    ]
    processes = mine["process"].n_unique()
    drawn = "Every sample" if kept.height == mine.height else f"{kept.height} of {mine.height} samples, evenly"
    sides = dict(mine.group_by("side", maintain_order=True).agg(pl.col("time_ms").median()).iter_rows())
    told = ", ".join(f"{side} {significant(time)} ms" for side, time in sides.items())
    words = (
        f"Samples of {case.case}",
        f"{drawn}, a dot each, a lane for each of {processes} processes; upright bar: the process's median. Medians of "
        f"the sides: {told}; their intervals stand in the table above."
        + (f" {beyond} samples lie further out and are drawn at the edge." if beyond else ""),
        f"Time samples of {case.case} against their side's median; medians: {told}",
    )
    lists = kept.group_by("side", "process", maintain_order=True).agg("round", pl.col("time_ms").round_sig_figs(5))
    columns = [
        Column("side", "side"),
        Column("process", "process"),
        Column("round", "rounds"),
        Column("time_ms", "times, a figure for each of the rounds (ms)"),
    ]
    return charts.build(layers, max(100, 2 * processes * 18), words, lists, columns)


def roofline(cases: list[MeasureCase], ceilings: Ceilings) -> Chart | None:
    """Both sides of every passed case under the measured ceilings; None when no case has counted work."""
    found: list[dict[str, Any]] = []
    for case in cases:
        for name, side in (("baseline", case.baseline), ("optimized", case.optimized)):
            if side is None or case.status != "passed" or case.flops <= 0 or case.bytes <= 0:
                continue
            seconds = UNITS.get(side.time.unit.lower(), ("time", 1e-3))[1]
            found.append(
                {
                    "case": case.case,
                    "side": name,
                    "intensity": case.flops / case.bytes,
                    "rate": case.flops / (side.time.value * seconds),
                    "low": case.flops / (side.time.high * seconds),
                    "high": case.flops / (side.time.low * seconds),
                    "fraction": side.roofline_fraction.value * 100,
                }
            )
    bandwidth = ceilings.read_bandwidth_bytes_per_s
    if not found or bandwidth <= 0:
        return None
    dtypes = sorted({case.dtype for case in cases if case.status == "passed" and case.flops > 0})
    rates = {dtype: ceilings.matmul_flops_per_s[dtype] for dtype in dtypes if dtype in ceilings.matmul_flops_per_s}
    size, unit = scaled(max([*rates.values(), *(row["high"] for row in found)]), "flop/s")
    frame = pl.DataFrame(found).with_columns(pl.col("rate", "low", "high") / size)
    ridges = [rate / bandwidth for rate in rates.values()]
    left = min([row["intensity"] for row in found] + ridges) / 4
    right = max([row["intensity"] for row in found] + ridges) * 4
    slope_end = max(ridges, default=right)
    lines = [{"ceiling": "read bandwidth", "intensity": at, "rate": at * bandwidth / size} for at in (left, slope_end)]
    for dtype, rate in rates.items():
        lines += [
            {"ceiling": f"matmul {dtype}", "intensity": at, "rate": rate / size} for at in (rate / bandwidth, right)
        ]
    x_scale = alt.Scale(type="log", domain=[left, right], nice=False)
    y_scale = alt.Scale(type="log", nice=False, padding=10)
    x = alt.X("intensity:Q", scale=x_scale, title="arithmetic intensity (FLOP/byte, log scale)").axis(
        format="~g", tickCount=6
    )
    y = alt.Y("rate:Q", scale=y_scale, title=f"{unit} (log scale)").axis(format="~g", tickCount=6)
    ceiling_frame = pl.DataFrame(lines)
    roof = (
        charts.base(ceiling_frame)
        .mark_line(strokeWidth=2, stroke=charts.MUTED)
        .encode(
            x=x, y=y, detail="ceiling:N", strokeDash=alt.StrokeDash("ceiling:N", legend=alt.Legend(symbolType="stroke"))
        )
    )
    spread = (
        charts.base(frame)
        .mark_rule(strokeWidth=2)
        .encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=charts.side_color())
    )
    point = (
        charts.base(frame)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=x,
            y=y,
            color=charts.side_color(),
            shape=charts.side_shape(),
            tooltip=["case:N", "side:N", "intensity:Q", "rate:Q", "fraction:Q"],
        )
    )
    name = (
        charts.base(_point_names(frame))
        .mark_text(align="left", dx=8, fontSize=10, limit=150, aria=False)
        .encode(x=x, y=y, text="names:N")
    )
    missing = [dtype or "of no named dtype" for dtype in dtypes if dtype not in rates]
    note = f" No matmul rate was measured for {', '.join(missing)}, so that ceiling is not drawn." if missing else ""
    words = (
        "Roofline",
        "Points: useful FLOPs ÷ measured time, at the problem's FLOPs ÷ fewest bytes that must move; the line through "
        "a point is its time's 95 % interval. Lines: this machine's measured read bandwidth (slope) and matrix rate "
        f"(flat). Both sides of a case stand at the same intensity.{note}",
        "Roofline: "
        + "; ".join(
            f"{row['case']} {row['side']} {significant(row['fraction'])} % of the roofline" for row in found[:12]
        ),
    )
    columns = [
        Column("case", "case"),
        Column("side", "side"),
        Column("intensity", "intensity (FLOP/byte)"),
        Column("rate", f"achieved ({unit})"),
        Column("low", f"interval low ({unit})"),
        Column("high", f"interval high ({unit})"),
        Column("fraction", "of the roofline (%)"),
    ]
    return charts.build([roof, spread, point, name], 260, words, frame, columns)


def _point_names(frame: pl.DataFrame) -> pl.DataFrame:
    """One label for each optimized point; points too near for two labels share one."""
    labels: list[dict[str, Any]] = []
    for row in frame.filter(pl.col("side") == "optimized").sort("rate").to_dicts():
        for label in labels:
            near = abs(math.log(row["intensity"] / label["intensity"])) < 1.6
            if near and abs(math.log(row["rate"] / label["rate"])) < 0.3:
                label["names"] += f", {row['case']}"
                break
        else:
            labels.append({"names": row["case"], "intensity": row["intensity"], "rate": row["rate"]})
    return pl.DataFrame(labels)


def memory(cases: list[MeasureCase]) -> Chart | None:
    """Peak bytes of each side, and KV-cache bytes reserved and used where they were counted."""
    found: list[dict[str, Any]] = []
    for case in cases:
        for name, side in (("baseline", case.baseline), ("optimized", case.optimized)):
            if side is None or case.status != "passed":
                continue
            kinds = {"peak": float(side.peak_memory_bytes)}
            for kind, key in (("KV reserved", "kv_bytes_reserved"), ("KV used", "kv_bytes_used")):
                if key in side.metrics:
                    kinds[kind] = side.metrics[key].value
            found += [{"row": f"{case.case} · {name}", "kind": kind, "size": size} for kind, size in kinds.items()]
    if not found:
        return None
    divisor, unit = scaled(max(row["size"] for row in found), "bytes")
    frame = pl.DataFrame(found).with_columns(pl.col("size") / divisor)
    kinds_found = [kind for kind in ("peak", "KV reserved", "KV used") if kind in set(frame["kind"])]
    palette = dict(
        zip(("peak", "KV reserved", "KV used"), (charts.MUTED, charts.BASELINE, charts.OPTIMIZED), strict=True)
    )
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=kinds_found, range=[palette[kind] for kind in kinds_found]),
        legend=alt.Legend() if len(kinds_found) > 1 else None,
    )
    room = 1.14 * float(frame["size"].max())  # type: ignore[arg-type]
    every_row = frame["row"].unique(maintain_order=True).to_list()
    y = alt.Y("row:N", title=None, scale=alt.Scale(domain=every_row, paddingInner=0.3))
    lane = alt.YOffset("kind:N", scale=alt.Scale(domain=kinds_found))
    x = alt.X("size:Q", title=f"memory ({unit})", scale=alt.Scale(domain=[0, room])).axis(format="~g", tickCount=5)
    bars = charts.base(frame).mark_bar().encode(x=x, y=y, yOffset=lane, color=color)
    label = (
        charts.base(frame)
        .mark_text(align="left", dx=4, aria=False)
        .encode(x=x, y=y, yOffset=lane, text=alt.Text("size:Q", format=",.3~r"))
    )
    more = " KV reserved: bytes held for the cache; KV used: those of them that hold tokens. Bars of a row stand in "
    more += f"the order {', '.join(kinds_found)}."
    words = (
        "Memory",
        "Peak: the inputs that this side reads plus all it allocates, in a process of its own; a count, so it has no "
        f"interval.{more if len(kinds_found) > 1 else ''}",
        "Memory: " + "; ".join(f"{row['row']} {row['kind']} {figure(row['size'], 'bytes')}" for row in found[:12]),
    )
    columns = [Column("row", "case and side"), Column("kind", "what"), Column("size", f"memory ({unit})")]
    height = 14 * len(found) + 12 * len(every_row)
    return charts.build([bars, label], height, words, frame, columns)
