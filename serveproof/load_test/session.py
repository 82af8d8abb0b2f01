"""A server under load: one run, what it carries at most, and figures over several runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl

from serveproof.errors import UserError
from serveproof.load_records import LoadRun, Quantiles, Slo
from serveproof.load_test import wire
from serveproof.load_test.bootstrap import interval
from serveproof.load_test.metrics import Floats
from serveproof.load_test.outcomes import ClientJob, Planned
from serveproof.load_test.processes import drive
from serveproof.load_test.run_figures import Run, over_runs, summarize
from serveproof.load_test.scenarios import GREEDY, LONG, Workload, plan_closed
from serveproof.load_test.watch import Watch
from serveproof.results import Estimate

SETTLE = 0.4


@dataclass(frozen=True)
class Target:
    """Where the requests go, and how they are counted. timeout_s: when a request is given up."""

    base_url: str
    route: str
    slo: Slo
    processes: int = 1
    timeout_s: float = 120.0
    api_key: str = ""
    price_per_hour: float = 0.0

    def job(self, requests: list[Planned]) -> ClientJob:
        """An open loop's job."""
        return ClientJob(self.base_url + wire.PATHS[self.route], requests, self.timeout_s, self.api_key)

    def closed(self, workload: Workload, users: int, duration_s: float, run: int = 0) -> ClientJob:
        """A closed loop's job: so many users, each sending when its last request has ended."""
        planned = plan_closed(workload, max(100, int(duration_s * 50 * users)), run)
        return msgspec.structs.replace(self.job(planned), concurrency=users, until_s=duration_s)


def run_once(target: Target, job: ClientJob, duration_s: float, number: int) -> tuple[Run, pl.DataFrame]:
    """One run and its telemetry, one row a second."""
    watch, at_ns = Watch(target.base_url, target.api_key), [0]

    def begin(start_ns: int) -> None:
        at_ns[0] = start_ns
        watch.start()

    driven = drive(job, target.processes, begin)
    watch.stop()
    run = summarize(
        driven,
        number,
        duration_s,
        target.slo,
        energy=lambda begin_s, end_s: watch.joules(at_ns[0], begin_s, end_s),
        price_per_hour=target.price_per_hour,
    )
    return run, watch.table(number, at_ns[0], run.requests)


def capacity(target: Target, workload: Workload, concurrency: int, duration_s: float) -> tuple[float, float]:
    """(requests, output tokens) a second that the server completes while so many users keep it full.

    A closed loop; its first 40 % fill the server and are not counted. UserError when nothing was completed.
    """
    job = target.closed(workload, concurrency, duration_s)
    run = summarize(drive(job, target.processes), 0, duration_s, target.slo)
    begin = SETTLE * duration_s
    done = [one for one in run.requests if one.ok and begin <= one.done_s < duration_s]
    if not done:
        errors = "; ".join(run.record.first_errors) or "none was answered in time"
        raise UserError(f"no request was completed in {duration_s:g} s with {concurrency} at once: {errors}")
    window = duration_s - begin
    return len(done) / window, sum(one.output_tokens for one in done) / window


def figures(runs: Sequence[Run], timeout_s: float) -> dict[str, Estimate]:
    """What is judged, over the runs: name -> figure with its interval."""
    found: dict[str, Estimate | None] = {}

    def add(name: str, unit: str, of: Callable[[LoadRun], float | None], within: Estimate | None) -> None:
        found[name] = over_runs([of(run.record) for run in runs], within, unit)

    first = runs[0].record
    for name in ("ttft", "tpot", "gap", "e2e", "others_gap"):
        for part in ("p50", "p99"):
            add(
                f"{name}_{part}_ms",
                "ms",
                lambda record, name=name, part=part: _value(getattr(record, name), part),  # type: ignore[misc]
                getattr(getattr(first, name), part) if getattr(first, name) else None,
            )
    add("good_per_s", "requests/s", lambda record: record.good_per_s, runs[0].good_per_s)
    add("output_tokens_per_s", "tokens/s", lambda record: record.output_tokens_per_s, runs[0].output_tokens_per_s)
    for name, of_each in (
        ("modest_ttft_p90_ms", [_modest_ttft(run, timeout_s) for run in runs]),
        ("others_stall_p90_ms", [_others_stalls(run) for run in runs]),
    ):
        if all(len(one) for one in of_each):
            within = interval(of_each[0], _p90, "ms")
            found[name] = over_runs([_p90(one) for one in of_each], within, "ms")
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _value(quantiles: Quantiles | None, share: str) -> float | None:
    return float(getattr(quantiles, share).value) if quantiles else None


def _p90(values: Floats) -> float:
    return float(np.quantile(values, 0.9))


def _modest_ttft(run: Run, timeout_s: float) -> Floats:
    """TTFT of the tenants beside the greedy one; one that got no answer waited for as long as a request may."""
    if GREEDY not in {one.tenant for one in run.requests}:
        return np.empty(0)
    inside = [one for one in run.inside() if one.tenant != GREEDY]
    return np.asarray(
        [one.ttft_ms if one.ok and one.ttft_ms is not None else 1e3 * timeout_s for one in inside], dtype=np.float64
    )


def _others_stalls(run: Run) -> Floats:
    """The longest gap of each request beside the long prompts. Of all gaps together a stall is too small a share for
    any percentile, the faster the server the smaller; of a request's own it is what its reader notices."""
    if LONG not in {one.kind for one in run.requests}:
        return np.empty(0)
    return np.asarray(
        [max(one.gaps_ms) for one in run.inside() if one.ok and one.kind != LONG and one.gaps_ms], dtype=np.float64
    )
