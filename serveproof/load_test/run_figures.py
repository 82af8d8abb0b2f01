"""One run's record from what its clients saw, and figures over several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from serveproof.bench.statistics import estimate_positive
from serveproof.load_records import Energy, Fairness, LoadRun, Quantiles, Slo, TenantFigures
from serveproof.load_test import bootstrap, fairness, metrics, steadiness
from serveproof.load_test.metrics import Floats, Served
from serveproof.load_test.outcomes import ANSWERED
from serveproof.load_test.processes import Driven
from serveproof.results import Estimate
from serveproof.tables import REQUESTS_SCHEMA

ERRORS_SHOWN = 5
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Run:
    """A run's requests in figures and its record. good_per_s, output_tokens_per_s: with the interval of its seconds;
    None in too few of them."""

    record: LoadRun
    requests: list[Served]
    window: tuple[float, float]
    good_per_s: Estimate | None
    output_tokens_per_s: Estimate | None

    def inside(self) -> list[Served]:
        """The requests that arrived in the window."""
        return [one for one in self.requests if self.window[0] <= one.intended_s < self.window[1]]


def quantiles(values: Floats) -> Quantiles | None:
    """Percentiles (linear interpolation, as numpy's and vLLM's) with block bootstrap intervals; None without values."""
    if not len(values):
        return None
    p50, p90, p99 = bootstrap.quantiles(values, SHARES, "ms") or [_range(values, share) for share in SHARES]
    return Quantiles(len(values), float(values.mean()), p50, p90, p99, float(values.max()))


def _range(values: Floats, share: float) -> Estimate:
    """Of too few to say how sure it is: the whole range."""
    return Estimate(float(np.quantile(values, share)), float(values.min()), float(values.max()), "ms", 1.0)


def summarize(
    driven: Driven,
    number: int,
    duration_s: float,
    slo: Slo,
    *,
    energy: Callable[[float, float], tuple[float | None, str]] = lambda _begin, _end: (None, "not asked for"),
    price_per_hour: float = 0.0,
) -> Run:
    """Everything that one run came to. energy: joules between two times of the run in s, or why there is none."""
    requests = metrics.served(driven.outcomes, driven.planned, driven.start_ns)
    steady = steadiness.judge(requests, duration_s)
    begin, end = steady.warmup_s, duration_s
    inside = [one for one in requests if begin <= one.intended_s < end]
    window_s = end - begin
    good = np.asarray([one.good(slo) for one in inside], dtype=np.float64)
    token_rates = metrics.token_rates(requests, driven.start_ns, begin, end)
    good_rates = metrics.good_rates(requests, slo, begin, end)
    output_per_s = float(token_rates.mean())
    lags = [metrics.send_lag_ms(one) for one in requests]
    tpot, gap = quantiles(metrics.values(inside, "tpot")), quantiles(metrics.values(inside, "gap"))
    others = [one for one in inside if one.kind != "long"]
    joules, why = energy(begin, end)
    invalid = metrics.why_invalid(requests, driven.loop_lag_ms)
    record = LoadRun(
        number=number,
        requests=len(requests),
        duration_s=duration_s,
        window_s=window_s,
        offered_per_s=len(inside) / window_s,
        valid=not invalid,
        invalid_reason=invalid,
        lag_p50_ms=float(np.percentile(lags, 50)),
        lag_p99_ms=float(np.percentile(lags, 99)),
        loop_lag_p99_ms=float(np.percentile(driven.loop_lag_ms, 99)) if driven.loop_lag_ms else 0.0,
        client_cpu_share=driven.cpu_share,
        endings=dict(Counter(one.outcome.ending for one in requests)),
        answered_share=sum(one.outcome.ending in ANSWERED for one in requests) / len(requests),
        steadiness=steady,
        good_share=bootstrap.interval(good, np.mean, "fraction"),
        good_per_s=float(good_rates.mean()),
        completed_per_s=sum(one.ok and begin <= one.done_s < end for one in requests) / window_s,
        output_tokens_per_s=output_per_s,
        ttft=quantiles(metrics.values(inside, "ttft")),
        tpot=tpot,
        gap=gap,
        e2e=quantiles(metrics.values(inside, "e2e")),
        others_gap=gap if len(others) == len(inside) else quantiles(metrics.values(others, "gap")),
        tokens_per_s_per_user=1e3 / tpot.p50.value if tpot and tpot.p50.value else None,
        tenants=tenants(requests, driven, begin, end, slo),
        fairness=fairness_of(requests, driven, begin, end),
        energy=Energy(joules, joules / (output_per_s * window_s) if joules and output_per_s else None, why),
        cost_per_million_tokens=1e6 * price_per_hour / 3600 / output_per_s if price_per_hour and output_per_s else None,
        first_errors=list(dict.fromkeys(one.outcome.reason for one in requests if not one.ok))[:ERRORS_SHOWN],
    )
    return Run(
        record,
        requests,
        (begin, end),
        bootstrap.interval(good_rates, np.mean, "requests/s"),
        bootstrap.interval(token_rates, np.mean, "tokens/s"),
    )


def _by_tenant(requests: Sequence[Served]) -> dict[str, list[Served]]:
    names = sorted({one.tenant for one in requests})
    return {name: [one for one in requests if one.tenant == name] for name in names}


def _asked(requests: Sequence[Served], driven: Driven) -> float:
    """The service that these requests call for, whether they got it or not."""
    plans = [driven.planned[one.number] for one in requests]
    prompts = sum(one.prompt_tokens for one in requests)
    return fairness.PROMPT_WEIGHT * prompts + fairness.OUTPUT_WEIGHT * sum(plan.output_tokens for plan in plans)


def tenants(requests: Sequence[Served], driven: Driven, begin: float, end: float, slo: Slo) -> list[TenantFigures]:
    """Each tenant's figures in the window."""
    found = []
    for name, own in _by_tenant(requests).items():
        inside = [one for one in own if begin <= one.intended_s < end]
        ttft, tpot = metrics.values(inside, "ttft"), metrics.values(inside, "tpot")
        times, amounts = fairness.service(own, driven.start_ns)
        shares = [float(np.quantile(ttft, share)) if len(ttft) else None for share in (0.5, 0.9, 0.99)]
        found.append(
            TenantFigures(
                tenant=name,
                requests=len(inside),
                ok=sum(one.ok for one in inside),
                good=sum(one.good(slo) for one in inside),
                ttft_p50_ms=shares[0],
                ttft_p90_ms=shares[1],
                ttft_p99_ms=shares[2],
                tpot_p50_ms=float(np.median(tpot)) if len(tpot) else None,
                output_tokens_per_s=float(metrics.token_rates(own, driven.start_ns, begin, end).mean()),
                service_asked=_asked(inside, driven),
                service_got=float(amounts[(times >= begin) & (times < end)].sum()),
            )
        )
    return found


def fairness_of(requests: Sequence[Served], driven: Driven, begin: float, end: float) -> Fairness | None:
    """Over the tenants of the window; None with one tenant alone."""
    groups = _by_tenant(requests)
    if len(groups) < 2:
        return None
    asked = {
        name: _asked([one for one in own if begin <= one.intended_s < end], driven) for name, own in groups.items()
    }
    index = fairness.index(groups, asked, driven.start_ns, begin, end)
    return Fairness(index, fairness.largest_gap(groups, driven.start_ns))


def over_runs(values: Sequence[float | None], within: Estimate | None, unit: str) -> Estimate | None:
    """A figure over repeated runs, each run one value; of one run alone its own interval. None where a run has none."""
    if any(value is None or value <= 0 for value in values) or not values:
        return None
    if len(values) == 1:
        return within
    return estimate_positive([np.asarray([value], dtype=np.float64) for value in values], unit)


def table(runs: Sequence[Run], slo: Slo) -> pl.DataFrame:
    """One row a request of every run."""
    rows = [
        {
            "run": run.record.number,
            "number": one.number,
            "tenant": one.tenant,
            "kind": one.kind,
            "intended_s": one.intended_s,
            "lag_ms": one.lag_ms,
            "ttft_ms": one.ttft_ms,
            "tpot_ms": one.tpot_ms,
            "e2e_ms": one.e2e_ms,
            "gaps_ms": one.gaps_ms,
            "prompt_tokens": one.prompt_tokens,
            "output_tokens": one.output_tokens,
            "ending": one.outcome.ending,
            "status": one.outcome.status,
            "reason": one.outcome.reason,
            "in_window": run.window[0] <= one.intended_s < run.window[1],
            "good": one.good(slo),
        }
        for run in runs
        for one in run.requests
    ]
    return pl.DataFrame(rows, schema=REQUESTS_SCHEMA)
