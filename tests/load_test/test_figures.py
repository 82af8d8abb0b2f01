"""The formulas against figures worked out by hand, and the statistics against simulations whose truth is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from serveproof.errors import UserError
from serveproof.load_records import Slo
from serveproof.load_test import arrivals, bootstrap, early_stopping, fairness, lengths, metrics, steadiness
from serveproof.load_test.early_stopping import Rule
from serveproof.load_test.metrics import Served
from serveproof.load_test.outcomes import Outcome, Planned

MS = 1_000_000


def one(
    number: int, at_ms: float, stamps_ms: list[float], tenant: str = "a", tokens: list[int] | None = None
) -> Served:
    """A request with chunks at these times; answered whole when there are any."""
    stamps = [round(stamp * MS) for stamp in stamps_ms]
    counts = tokens or [1] * len(stamps)
    end = stamps[-1] if stamps else round((at_ms + 5_000) * MS)
    at, first = round(at_ms * MS), stamps[0] if stamps else 0
    outcome = Outcome(
        number, at, at, at, first, end, stamps, counts, 10, sum(counts), False, 200, "ok" if stamps else "timeout"
    )
    return metrics.served([outcome], {number: Planned(number, at_ms / 1e3, b"", tenant, "", 10, 4)}, 0)[0]


def test_one_request_by_hand() -> None:
    request = one(1, 100, [300, 340, 360, 420])
    assert (request.ttft_ms, request.tpot_ms, request.e2e_ms) == (200, 40, 320)
    assert request.gaps_ms == [40, 20, 60]
    assert request.good(Slo(200, 40))
    assert not request.good(Slo(199, 40))
    assert not request.good(Slo(200, 39))
    alone = one(2, 0, [50])
    assert (alone.tpot_ms, alone.good(Slo(50, 1))) == (None, True)
    lost = one(3, 0, [])
    assert (lost.ttft_ms, lost.e2e_ms, lost.good(Slo(1e9, 1e9))) == (None, None, False)


def test_a_window_counts_tokens_when_they_arrive() -> None:
    requests = [one(1, 0, [500, 1500, 2500], tokens=[1, 3, 5])]
    each = metrics.token_rates(requests, 0, 0.0, 12.0)
    assert each.tolist() == [1, 3, 5, *[0] * 9]
    early, late = one(2, 0, [1200, 1400]), one(3, 900, [1000, 2100])
    assert metrics.good_rates([early, late], Slo(1500, 300), 0.0, 12.0).tolist() == [0, 1, *[0] * 10]
    assert metrics.good_rates([early, late], Slo(1500, 2000), 2.0, 13.0).tolist() == [1, *[0] * 10]
    assert metrics.good_rates([one(4, 0, [])], Slo(1, 1), 0.0, 12.0).tolist() == [0] * 12
    short = metrics.token_rates(requests, 0, 1.0, 2.0)  # tenths of a second: as many as an interval takes
    assert (len(short), float(short.mean())) == (10, pytest.approx(3))
    assert metrics.good_rates([early, late], Slo(1500, 300), 1.0, 2.0).sum() == pytest.approx(10)
    assert metrics.outstanding(requests, np.asarray([-0.1, 0.0, 2.0, 2.6])).tolist() == [0, 1, 1, 0]


def test_jain_and_max_min_by_hand() -> None:
    assert fairness.jain([1, 1, 1, 1]) == 1
    assert fairness.jain([1, 0, 0, 0]) == 0.25
    assert fairness.jain([3, 1]) == pytest.approx(16 / 20)
    assert fairness.max_min([1, 10, 10], 9) == [1, 4, 4]
    assert fairness.max_min([1, 2], 9) == [1, 2]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.floats(0.01, 300))
def test_max_min_gives_nobody_more_than_asked_and_wastes_nothing(demands: list[float], capacity: float) -> None:
    given_ = fairness.max_min(demands, capacity)
    assert all(got <= want * (1 + 1e-9) for got, want in zip(given_, demands, strict=True))
    assert sum(given_) == pytest.approx(min(capacity, sum(demands)))
    short = [got for got, want in zip(given_, demands, strict=True) if got < want * (1 - 1e-9)]
    assert all(got >= max(given_) * (1 - 1e-9) for got in short)


def test_fairness_sees_who_was_starved() -> None:
    greedy = [one(n, 0, [n * 100.0, n * 100.0 + 50], "greedy") for n in range(1, 11)]
    starved = [one(20, 0, [5_000], "modest")]
    groups = {"greedy": greedy, "modest": starved}
    # both waited until the tenth of greedy's got its first token at 1.0 s; until then nine had been served 10 + 2 + 2
    assert fairness.largest_gap(groups, 0) == 9 * 14
    asked = {"greedy": 140.0, "modest": 100.0}
    assert fairness.index(groups, asked, 0, 0.0, 2.0) == pytest.approx(0.5)
    even = {name: [one(n, 0, [100.0, 200.0], name)] for n, name in enumerate(("a", "b"))}
    assert fairness.index(even, {"a": 14.0, "b": 14.0}, 0, 0.0, 2.0) == 1
    assert fairness.largest_gap(even, 0) == 0


def test_fairness_asks_for_no_more_than_was_wanted() -> None:
    """A tenant that asks for little and gets all of it was served fairly, however much another got."""
    groups = {"big": [one(n, 0, [100.0 * n], "big") for n in range(1, 11)], "small": [one(20, 0, [100.0], "small")]}
    assert fairness.index(groups, {"big": 120.0, "small": 12.0}, 0, 0.0, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("process", "shape"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 4.0), ("constant", 0.0)])
def test_arrivals_come_at_the_rate_and_as_bursty_as_asked(process: str, shape: float) -> None:
    times = arrivals.draw(process, 50, 400, np.random.default_rng(0), burstiness=shape or 1.0)
    assert len(times) / 400 == pytest.approx(50, rel=0.04)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 400
    gaps = np.diff(times)
    squared_variation = gaps.var() / gaps.mean() ** 2
    assert squared_variation == pytest.approx(1 / shape if shape else 0, rel=0.1, abs=1e-9)


def test_a_ramp_grows_from_one_rate_to_the_other() -> None:
    times = arrivals.draw("ramp", 10, 400, np.random.default_rng(0), end_rate_per_s=90)
    first, last = (times < 100).sum() / 100, (times >= 300).sum() / 100
    assert first == pytest.approx(20, rel=0.15)
    assert last == pytest.approx(80, rel=0.15)


def test_traces_by_their_columns(tmp_path: Path) -> None:
    burst = tmp_path / "burst.csv"
    burst.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,10,0,10,API log\n118,GPT-4,1087,230,1317,API log\n"
    )
    assert arrivals.read_trace(burst) == [arrivals.Traced(0, 472, 18), arrivals.Traced(113, 1087, 230)]
    mooncake = tmp_path / "mooncake.jsonl"
    mooncake.write_text(
        '{"timestamp": 3000, "input_length": 7, "output_length": 5, "hash_ids": [1]}\n'
        '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46]}\n'
    )
    traced = arrivals.read_trace(mooncake)
    assert [(t.at_s, t.prompt_tokens) for t in traced] == [(0.0, 7), (pytest.approx(24.482), 6955)]
    assert arrivals.replayed(traced, 10, None) == traced[:1]
    assert [t.at_s for t in arrivals.replayed(traced, 10, rate_per_s=1.0)] == pytest.approx([0, 2])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "Timestamp,Model\n1,x\n", "no column 'Request tokens'"),
        ("b.csv", "Timestamp,Request tokens,Response tokens\n1,x,2\n", "line 2"),
        ("c.jsonl", '{"timestamp": 1}\n', "line 1"),
        ("d.jsonl", "", "holds no request"),
    ],
)
def test_a_broken_trace_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        arrivals.read_trace(tmp_path / name)
    with pytest.raises(UserError, match="no such trace"):
        arrivals.read_trace(tmp_path / "absent.csv")


def test_lengths() -> None:
    generator = np.random.default_rng(0)
    assert set(lengths.parse("fixed:7", "k").draw(50, generator)) == {7}
    uniform = lengths.parse("uniform:3:6", "k").draw(2000, generator)
    assert set(uniform) == {3, 4, 5, 6}
    drawn = lengths.parse("lognormal:100:0.8:400", "k").draw(4000, generator)
    assert np.median(drawn) == pytest.approx(100, rel=0.06)
    assert drawn.max() <= 400
    for bad in ("fixed", "fixed:0", "uniform:6:3", "normal:1:2", "uniform:a:b", "lognormal:5:0:9"):
        with pytest.raises(UserError, match=r"^k: "):
            lengths.parse(bad, "k")


def test_mlperf_s_table_of_queries_is_recovered() -> None:
    """MLCommons' inference rules, "Early stopping": p and c 0.99, d 0 need 459 queries without a failure."""
    assert early_stopping.queries_needed(0, Rule()) == 459
    assert early_stopping.queries_needed(0, Rule(0.9, 0.99)) == 44
    assert early_stopping.queries_needed(0, Rule(0.9, 0.99)) == int(np.ceil(np.log(0.01) / np.log(0.9)))


@given(st.integers(0, 30), st.integers(1, 3000))
def test_the_rule_is_the_binomial_tail(beyond: int, within: int) -> None:
    rule = Rule(0.95, 0.9)
    chance = binom.cdf(beyond, within + beyond, 1 - rule.percentile)
    assert early_stopping.proven(within, beyond, rule) == (chance < 0.1) or abs(chance - 0.1) < 1e-9
    assert not (early_stopping.proven(within, beyond, rule) and early_stopping.disproven(within, beyond, rule))


def queue(rho: float, count: int, seed: int, servers: int = 4) -> tuple[list[Served], float]:
    """A queue with exponential times and several servers, from empty: requests as the client would have seen them."""
    generator = np.random.default_rng(seed)
    arrive = np.cumsum(generator.exponential(1 / rho, count))
    serve = generator.exponential(servers, count)
    free, found = np.zeros(servers), []
    for number in range(count):
        place = int(free.argmin())
        begin = max(float(arrive[number]), float(free[place]))
        free[place] = begin + float(serve[number])
        found.append(one(number, 1e3 * arrive[number], [1e3 * begin + 1, 1e3 * float(free[place]) + 2]))
    return found, float(arrive[-1])


def test_steady_queues_are_steady_and_overloaded_ones_are_not() -> None:
    steady = [steadiness.judge(*queue(0.5, 300, seed)).verdict for seed in range(20)]
    growing = [steadiness.judge(*queue(1.6, 300, seed)) for seed in range(20)]
    assert steady.count("steady") >= 17, steady
    assert all(one.verdict == "not_steady" for one in growing)
    assert "requests_under_way" in growing[0].reason
    assert steadiness.judge(*queue(0.5, 20, 0)).verdict == "too_short"


def test_a_warm_up_is_cut_off() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(100, 5, 400)
    values[:60] += np.linspace(400, 0, 60)
    assert 40 <= steadiness.warm_up(values) <= 80
    cuts = [steadiness.warm_up(np.random.default_rng(seed).exponential(size=400)) for seed in range(50)]
    assert sum(cut > 0 for cut in cuts) <= 10, "where there is no warm-up, none is cut off"


def test_block_intervals_cover_where_independent_draws_do_not() -> None:
    """An autoregressive series (r = 0.8), the mean known to be 0."""
    hits = {"blocks": 0, "single": 0}
    for seed in range(150):
        noise = np.random.default_rng(seed).normal(size=400)
        series = np.zeros(400)
        for place in range(1, 400):
            series[place] = 0.8 * series[place - 1] + noise[place]
        found = bootstrap.interval(series, np.mean, "ms", seed=seed)
        assert found
        hits["blocks"] += found.low <= 0 <= found.high
        half = 1.96 * series.std() / np.sqrt(400)
        hits["single"] += abs(series.mean()) <= half
    assert hits["blocks"] >= 0.85 * 150, hits
    assert hits["single"] < 0.6 * 150, hits


@pytest.mark.parametrize("size", [8, 9, 41, 700])
def test_quantiles_from_one_sort_are_those_of_each_resample(size: int) -> None:
    generator = np.random.default_rng(size)
    values = np.round(
        np.convolve(generator.exponential(9.0, size), np.ones(4), "same"), 1
    )  # ties, and neighbours alike
    found = bootstrap.quantiles(values, (0.5, 0.9, 0.99), "ms")
    assert found
    for share, one in zip((0.5, 0.9, 0.99), found, strict=True):
        each = bootstrap.interval(values, partial(np.quantile, q=share), "ms")
        assert each
        assert (one.low, one.value, one.high) == pytest.approx((each.low, each.value, each.high))


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95])
def test_a_block_is_twice_the_lag_at_which_correlation_ends(memory: float) -> None:
    noise = np.random.default_rng(3).normal(size=600)
    series = np.empty(600)
    series[0] = noise[0]
    for place in range(1, 600):
        series[place] = memory * series[place - 1] + noise[place]
    centred = series - series.mean()
    correlations = [(centred[:-lag] * centred[lag:]).sum() / (centred * centred).sum() for lag in range(1, 120)]
    ends = next(lag for lag, r in enumerate(correlations, 1) if abs(r) < 2 / np.sqrt(600))
    assert bootstrap.block_length(series) == min(max(9, 2 * ends), 120)


def test_few_values_have_no_interval() -> None:
    assert bootstrap.interval(np.ones(7), np.mean, "ms") is None
    assert bootstrap.quantiles(np.ones(7), (0.5,), "ms") is None
    found = bootstrap.interval(np.ones(8), np.mean, "ms")
    assert found
    assert (found.low, found.value, found.high) == (1, 1, 1)
