"""The client against a server whose latencies and faults are known: the figures must give them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from serveproof.errors import UserError
from serveproof.load_records import Slo
from serveproof.load_test import metrics, processes
from serveproof.load_test.outcomes import ClientJob
from serveproof.load_test.processes import Driven
from serveproof.load_test.run_figures import Run, summarize

Start = Callable[..., str]
Job = Callable[..., ClientJob]
SLO = Slo(2000.0, 100.0)
pytestmark = pytest.mark.timed


def run(job: ClientJob, number: int = 1) -> Run:
    return summarize(processes.drive(job, number), 1, 1.0, SLO)


def endings(driven: Driven) -> Counter[str]:
    return Counter(one.ending for one in driven.outcomes)


@pytest.mark.parametrize("route", ["completions", "chat"])
@pytest.mark.parametrize("usage", ["continuous", "last", "none"])
def test_known_latencies_are_recovered(null_server: Start, job: Job, route: str, usage: str) -> None:
    base = null_server(first_token_ms=80, gap_ms=20, usage=usage)
    driven = processes.drive(job(base, 30, 60, tokens=6, route=route))
    served = metrics.served(driven.outcomes, driven.planned, driven.start_ns)
    assert endings(driven) == {"ok": 30}
    assert {one.output_tokens for one in served} == {6}
    ttft, tpot, e2e = (np.median(metrics.values(served, name)) for name in ("ttft", "tpot", "e2e"))
    assert 80 <= ttft < 95
    assert 18 <= tpot < 25
    assert 180 <= e2e < 205
    assert all(len(one.gaps_ms) == 5 for one in served)
    assert all(one.outcome.chunks_counted == (usage != "continuous") for one in served)


def test_tokens_that_come_together_are_counted_by_usage(null_server: Start, job: Job) -> None:
    base = null_server(tokens_per_chunk=4, gap_ms=30)
    driven = processes.drive(job(base, 6, 50, tokens=12))
    served = metrics.served(driven.outcomes, driven.planned, driven.start_ns)
    assert {one.output_tokens for one in served} == {12}
    assert {len(one.gaps_ms) for one in served} == {2}
    assert np.median(metrics.values(served, "tpot")) == pytest.approx(60 / 11, rel=0.2)


def test_every_fault_ends_as_what_it_is(null_server: Start, job: Job) -> None:
    base = null_server(gap_ms=5, error_every=7, hang_up_every=11, silent_every=13, garbage_every=17, no_done_every=19)
    driven = processes.drive(job(base, 40, 200, timeout_s=1.5), 2)
    by_number = {one.number: one for one in driven.outcomes}
    assert len(by_number) == 40
    wanted = {7: "http_error", 11: "cut_short", 13: "timeout", 17: "bad_stream", 19: "cut_short", 1: "ok"}
    assert {number: by_number[number].ending for number in wanted} == wanted
    assert by_number[7].status == 500
    assert "planted" in by_number[7].reason
    assert by_number[13].done_ns - by_number[13].intended_ns == pytest.approx(1.5e9, rel=0.1)
    figures = summarize(driven, 1, 0.5, SLO).record
    assert figures.endings["ok"] == 40 - 5 - 3 - 3 - 2 - 2
    assert figures.good_per_s == figures.completed_per_s == pytest.approx(figures.endings["ok"] / 0.5)
    assert figures.good_share
    assert figures.good_share.value == pytest.approx(figures.endings["ok"] / 40)
    cut = summarize(driven, 1, 0.1, SLO).record
    assert cut.good_per_s < cut.good_share.value * cut.offered_per_s, "what ended after the end is no goodput"  # type: ignore[union-attr]
    assert figures.answered_share == pytest.approx((figures.endings["ok"] + 5) / 40)
    assert any("500" in error for error in figures.first_errors)


def test_a_slow_first_token_and_a_stall_land_in_their_own_figures(null_server: Start, job: Job) -> None:
    base = null_server(first_token_ms=5, gap_ms=5, slow_every=10, slow_first_token_ms=300, stall_every=7, stall_ms=200)
    driven = processes.drive(job(base, 40, 100, tokens=8))
    served = {one.number: one for one in metrics.served(driven.outcomes, driven.planned, driven.start_ns)}
    assert served[10].ttft_ms is not None
    assert 295 <= served[10].ttft_ms < 330
    assert max(served[10].gaps_ms) < 50
    assert served[7].ttft_ms is not None
    assert served[7].ttft_ms < 50
    gaps = served[7].gaps_ms
    stall = int(np.argmax(gaps))
    # the chunk before it may be late, which makes the gap itself shorter; when the stall ends is the server's alone,
    # whose loop (uvloop) rounds its timers to whole ms, and counts them from when its turn began
    after_it_ms = served[7].ttft_ms + sum(gaps[: stall + 1])
    assert gaps[stall] > 150
    assert sorted(gaps)[-2] < 50
    assert -5 <= after_it_ms - (5 + 5 * stall + 200) < 35


def test_a_frozen_server_can_not_hide_what_waited(null_server: Start, job: Job) -> None:
    """The trap of coordinated omission: the server stops for half a second in two. A client that waits for answers
    before it sends sees one slow request in a hundred; those who came in that half second all waited."""
    freeze = {"first_token_ms": 1, "freeze_at_s": 0.5, "freeze_ms": 500}
    driven = processes.drive(job(null_server(**freeze), 200, 100, tokens=2))
    ttft = metrics.values(metrics.served(driven.outcomes, driven.planned, driven.start_ns), "ttft")
    # 50 of 200 arrived while it stood: their waits go evenly from 500 ms down to 0
    assert np.quantile(ttft, 0.5) < 30
    assert np.quantile(ttft, 0.9) == pytest.approx(300, abs=40)
    assert np.quantile(ttft, 0.99) == pytest.approx(480, abs=40)
    closed = job(null_server(**freeze), 4000, 100, tokens=2, concurrency=1, until_s=2.0)
    driven = processes.drive(closed)
    blind = metrics.values(metrics.served(driven.outcomes, driven.planned, driven.start_ns), "ttft")
    assert np.quantile(blind, 0.99) < 100, "a closed loop that sees the freeze would not be the trap"


def test_a_closed_loop_keeps_so_many_under_way(null_server: Start, job: Job) -> None:
    base = null_server(first_token_ms=20, gap_ms=20)
    driven = processes.drive(job(base, 1000, 1, tokens=4, concurrency=5, until_s=1.0), 2)
    served = metrics.served(driven.outcomes, driven.planned, driven.start_ns)
    inside = metrics.outstanding(served, np.linspace(0.2, 0.9, 50))
    assert np.median(inside) == 5
    assert max(inside) <= 5
    assert len(served) == pytest.approx(5 * 1.0 / 0.08, rel=0.25)


def test_nobody_there_is_no_connection(job: Job) -> None:
    driven = processes.drive(job("http://127.0.0.1:9", 3, 100))
    assert endings(driven) == {"no_connection": 3}
    assert summarize(driven, 1, 0.03, SLO).record.answered_share == 0


def test_refusals_are_answers_and_not_good(null_server: Start, job: Job) -> None:
    base = null_server(first_token_ms=50, slots=1, refuse_beyond=2)
    driven = processes.drive(job(base, 20, 200, tokens=2))
    found = endings(driven)
    assert found["refused"] >= 10
    assert found["ok"] + found["refused"] == 20
    assert all(one.retry_after for one in driven.outcomes if one.ending == "refused")
    figures = summarize(driven, 1, 2.0, SLO).record
    assert figures.answered_share == 1
    assert figures.good_per_s == pytest.approx(found["ok"] / 2.0)


def test_a_late_client_makes_its_run_invalid(null_server: Start, job: Job) -> None:
    base = null_server()
    driven = replace(processes.drive(job(base, 100, 200, tokens=1)), loop_lag_ms=[0.0])
    for one in driven.outcomes:
        one.sent_ns = one.intended_ns
    assert summarize(driven, 1, 0.5, SLO).record.valid
    for one in driven.outcomes[:4]:
        one.sent_ns = one.intended_ns + 30_000_000
    figures = summarize(driven, 1, 0.5, SLO).record
    assert not figures.valid
    assert "lag p99" in figures.invalid_reason


def test_no_request_is_one_line(job: Job) -> None:
    with pytest.raises(UserError, match="no request to send"):
        processes.drive(ClientJob("http://127.0.0.1:9/", [], 1.0))
    with pytest.raises(UserError, match="at least 1"):
        processes.drive(job("http://127.0.0.1:9", 1, 1), 0)
