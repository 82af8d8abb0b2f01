"""Charts of load tests: latencies as distributions, a run second by second, goodput against rate, the Pareto picture,
tenants beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from serveproof.load_records import SweepRecord
from serveproof.report import charts
from serveproof.report.charts import Chart, Column
from serveproof.report.data import LoadTest
from serveproof.report.numbers import significant

GRID = [*(number / 50 for number in range(50)), 0.99, 1.0]
MOST_SECONDS_DRAWN = 600
COLORS = [charts.BASELINE, charts.OPTIMIZED, charts.THIRD, charts.LIMIT]
STATES = {True: "holds the SLO", False: "does not hold it", None: "not proven"}


def _color(field: str, names: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=[COLORS[place % len(COLORS)] for place in range(len(names))])
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend())


def distribution(tests: Sequence[LoadTest], column: str, title: str) -> Chart | None:
    """The share of requests (or gaps) that took at most so long, each server a line; None without any."""
    rows = []
    for test in tests:
        inside = test.requests.filter(pl.col("in_window") & (pl.col("ending") == "ok"))
        if column == "gaps_ms":
            inside = inside.filter(pl.col("kind") != "long").explode("gaps_ms")
        values = inside[column].drop_nulls().cast(pl.Float64)
        values = values.filter(values > 0)
        if len(values) < 2:
            continue
        rows += [
            {"server": test.record.server, "percent": 100 * share, "ms": values.quantile(share, "linear")}
            for share in GRID
        ]
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    servers = list(dict.fromkeys(frame["server"]))
    # two chunks read at once have next to no gap: without an edge they would take most of the axis
    edges = [max(float(frame["ms"].min()), float(frame["ms"].median()) / 30), float(frame["ms"].max())]  # type: ignore[arg-type]
    scale = alt.Scale(type="log", domain=edges, clamp=True)
    x = alt.X("ms:Q", title=f"{title} (ms, logarithmic)", scale=scale).axis(tickCount=6)
    y = alt.Y("percent:Q", title="share of requests (%)" if column != "gaps_ms" else "share of gaps (%)")
    line = (
        charts.base(frame)
        .mark_line(strokeWidth=2, interpolate="linear")
        .encode(x=x, y=y, color=_color("server", servers), order="percent:Q",
                tooltip=["server:N", "percent:Q", "ms:Q"])
    )  # fmt: skip
    middles = frame.filter(pl.col("percent") == 50.0)
    told = "; ".join(f"{row['server']} p50 {significant(row['ms'])} ms" for row in middles.to_dicts())
    scenario = tests[0].record.scenario.replace("_", " ")
    words = (
        f"{title}, {scenario}",
        "Further left is faster; a line that leans far to the right has a long tail. Of the requests that arrived in "
        "the window and were answered whole"
        + ("; the long prompts' own left out" if column == "gaps_ms" else "")
        + ". Every one is counted; there is no interval.",
        f"Distribution of {title}, {scenario}: {told}",
    )
    columns = [Column("server", "server"), Column("percent", "percent"), Column("ms", f"{title} (ms)")]
    return charts.build([line], 230, words, frame, columns)


def timeline(test: LoadTest) -> list[Chart]:
    """The first run second by second: requests running, waiting and under way; the cache's use."""
    first = test.record.runs[0].number
    frame = test.telemetry.filter((pl.col("run") == first) & (pl.col("second") >= 0)).head(MOST_SECONDS_DRAWN)
    if frame.is_empty():
        return []
    name = f"{test.record.scenario.replace('_', ' ')} of {test.record.server}"
    long = frame.unpivot(
        ["running", "waiting", "under_way"], index="second", variable_name="what", value_name="requests"
    ).with_columns(pl.col("what").str.replace("_", " "))
    long = long.drop_nulls()
    kinds = ["running", "waiting", "under way"]
    x = alt.X("second:Q", title="seconds since the start")
    lines = (
        charts.base(long)
        .mark_line(strokeWidth=2)
        .encode(x=x, y=alt.Y("requests:Q", title="requests"), color=_color("what", kinds),
                tooltip=["second:Q", "what:N", "requests:Q"])
    )  # fmt: skip
    warmup_s = test.record.runs[0].steadiness.warmup_s
    mark = charts.base(pl.DataFrame({"at": [warmup_s]})).mark_rule(strokeDash=[4, 4], aria=False).encode(x="at:Q")
    words = (
        f"Requests, {name}",
        "Running and waiting as the server says; under way as the client counts them, from the intended arrival; "
        "single readings. Dashed: the end of the warm-up.",
        f"Requests over time, {name}: at most {significant(float(long['requests'].max() or 0))} of a kind",  # type: ignore[arg-type]
    )
    columns = [Column("second", "second"), Column("what", "what"), Column("requests", "requests")]
    made = [charts.build([lines, mark], 200, words, long, columns)]
    cache = frame.select("second", (100 * pl.col("cache_usage")).alias("percent")).drop_nulls()
    if not cache.is_empty():
        area = (
            charts.base(cache)
            .mark_area(opacity=0.35, color=charts.OPTIMIZED, line={"color": charts.OPTIMIZED})
            .encode(x=x, y=alt.Y("percent:Q", title="KV cache in use (%)", scale=alt.Scale(domain=[0, 100])),
                    tooltip=["second:Q", "percent:Q"])
        )  # fmt: skip
        most = float(cache["percent"].max() or 0)  # type: ignore[arg-type]
        words = (f"KV cache, {name}", "The share of the cache's blocks that requests hold; single readings.",
                 f"KV cache in use over time, {name}: at most {significant(most)} %")  # fmt: skip
        made.append(charts.build([area], 140, words, cache, [Column("second", "second"), Column("percent", "%")]))
    return made


def goodput(sweep: SweepRecord) -> Chart | None:
    """Good requests a second against the rate that was offered."""
    if not sweep.points:
        return None
    frame = pl.DataFrame(
        [
            {"rate": one.rate_per_s, "offered": one.run.offered_per_s, "good": one.run.good_per_s,
             "done": one.run.completed_per_s, "state": STATES[one.proven]}
            for one in sweep.points
        ]
    )  # fmt: skip
    top = max(float(frame["offered"].max()), sweep.capacity_per_s)  # type: ignore[arg-type]
    x = alt.X("offered:Q", title="offered (requests/s)", scale=alt.Scale(zero=True))
    y = alt.Y("good:Q", title="within the SLO (requests/s)", scale=alt.Scale(zero=True))
    ideal = pl.DataFrame({"offered": [0.0, top], "good": [0.0, top]})
    layers = [
        charts.base(ideal).mark_line(strokeDash=[4, 4], stroke=charts.MUTED).encode(x=x, y=y),
        charts.base(pl.DataFrame({"capacity": [sweep.capacity_per_s]}))
        .mark_rule(strokeWidth=2, stroke=charts.LIMIT, strokeDash=[6, 3])
        .encode(x="capacity:Q"),
        charts.base(frame).mark_line(strokeWidth=2, stroke=charts.OPTIMIZED).encode(x=x, y=y, order="rate:Q"),
        charts.base(frame)
        .mark_point(filled=True, size=80, opacity=1)
        .encode(x=x, y=y, color=_color("state", list(STATES.values())),
                tooltip=["rate:Q", "offered:Q", "good:Q", "done:Q", "state:N"]),
    ]  # fmt: skip
    held = f"{significant(sweep.highest_rate_per_s)} requests/s" if sweep.highest_rate_per_s else "none was proven"
    words = (
        "Goodput against rate",
        "Offered: what came in each run's window. "
        f"Dotted: every request good. Red: what the server completes when it is kept full. Good: TTFT at most "
        f"{sweep.slo.ttft_ms:g} ms and TPOT at most {sweep.slo.tpot_ms:g} ms.",
        f"Goodput against rate; highest rate that holds the SLO: {held}",
    )
    columns = [Column("rate", "asked /s"), Column("offered", "offered /s"), Column("good", "good /s"),
               Column("done", "done /s"), Column("state", "SLO")]  # fmt: skip
    return charts.build(layers, 240, words, frame, columns)


def pareto(sweep: SweepRecord) -> Chart | None:
    """Tokens a second for one user against tokens a second for each GPU, a point a rate."""
    unit = "GPU" if sweep.gpus else "machine"
    rows = [
        {"user": one.run.tokens_per_s_per_user, "device": one.run.output_tokens_per_s / max(1, sweep.gpus),
         "rate": one.rate_per_s, "state": STATES[one.proven]}
        for one in sweep.points
        if one.run.tokens_per_s_per_user
    ]  # fmt: skip
    if not rows:
        return None
    frame = pl.DataFrame(rows)
    x = alt.X("user:Q", title="tokens/s a user (1 / median TPOT)", scale=alt.Scale(zero=True))
    y = alt.Y("device:Q", title=f"output tokens/s a {unit}", scale=alt.Scale(zero=True))
    layers = [
        charts.base(frame).mark_line(strokeWidth=1.5, stroke=charts.MUTED).encode(x=x, y=y, order="rate:Q"),
        charts.base(frame)
        .mark_point(filled=True, size=80, opacity=1)
        .encode(x=x, y=y, color=_color("state", list(STATES.values())),
                tooltip=["rate:Q", "user:Q", "device:Q", "state:N"]),
    ]  # fmt: skip
    words = (
        f"Speed for a user against speed of the {unit}",
        "A point a rate, joined in their order. Up and right is better; a batch that grows moves up and left. "
        "One run a rate: no interval.",
        f"Tokens a second a user against tokens a second a {unit}, {len(rows)} rates",
    )
    columns = [Column("rate", "requests/s"), Column("user", "tokens/s a user"), Column("device", f"tokens/s a {unit}"),
               Column("state", "SLO")]  # fmt: skip
    return charts.build(layers, 240, words, frame, columns)


def tenants(tests: Sequence[LoadTest]) -> Chart | None:
    """Each tenant's TTFT p90 under each server."""
    rows = [
        {"tenant": one.tenant, "server": test.record.server, "ms": one.ttft_p90_ms}
        for test in tests
        for one in test.record.runs[0].tenants
        if one.ttft_p90_ms is not None
    ]
    if len({row["tenant"] for row in rows}) < 2:
        return None
    frame = pl.DataFrame(rows)
    servers = list(dict.fromkeys(frame["server"]))
    points = (
        charts.base(frame)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("ms:Q", title="TTFT p90 (ms, logarithmic)", scale=alt.Scale(type="log")).axis(tickCount=6),
            y=alt.Y("tenant:N", title=None), color=_color("server", servers),
            shape=alt.Shape("server:N", scale=alt.Scale(domain=servers)), tooltip=["tenant:N", "server:N", "ms:Q"],
        )
    )  # fmt: skip
    told = "; ".join(f"{who} under {server} {significant(ms)} ms" for who, server, ms in frame.iter_rows())
    words = (
        f"Tenants, {tests[0].record.scenario.replace('_', ' ')}",
        "Of the first run, so without an interval. A fair server keeps the modest tenants' wait short however much the "
        "greedy one sends.",
        f"TTFT p90 by tenant: {told}",
    )
    columns = [Column("tenant", "tenant"), Column("server", "server"), Column("ms", "TTFT p90 (ms)")]
    return charts.build([points], 40 + 28 * frame["tenant"].n_unique(), words, frame, columns)
