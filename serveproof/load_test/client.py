"""One client process: `python -m serveproof.load_test.client JOB REPORT`, told to start by a line on stdin.

Open loop: each request is sent at its intended time, whatever became of those before it, and its clock runs from that
time. So neither a slow server nor a slow client can make requests wait unseen (coordinated omission: Tene, "How NOT to
Measure Latency"; Schroeder, Wierman, Harchol-Balter, "Open versus closed", NSDI 2006).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import uvloop

from serveproof.load_test import wire
from serveproof.load_test.outcomes import ClientJob, ClientReport, Outcome

BEAT_S = 0.02
NS = 1_000_000_000
LONGEST_REASON = 300


async def _headers_sent(_session: Any, context: SimpleNamespace, _params: Any) -> None:
    outcome: Outcome = context.trace_request_ctx
    outcome.written_ns = outcome.written_ns or time.monotonic_ns()


async def exchange(session: aiohttp.ClientSession, url: str, body: bytes, outcome: Outcome, timeout_s: float) -> None:
    """Send one request and follow its stream to the end. Every end is written into `outcome`; nothing is raised."""
    outcome.sent_ns = time.monotonic_ns()
    left_s = timeout_s - (outcome.sent_ns - outcome.intended_ns) / NS
    try:
        async with asyncio.timeout(max(left_s, 0.001)):
            async with session.post(url, data=body, trace_request_ctx=outcome) as response:
                outcome.status = response.status
                if response.status == 200:
                    await _follow(response, outcome)
                else:
                    text = (await response.read())[:LONGEST_REASON].decode(errors="replace")
                    outcome.ending = "refused" if response.status in (429, 503) else "http_error"
                    outcome.retry_after = "Retry-After" in response.headers
                    outcome.reason = f"{response.status}: {text}"
    except TimeoutError:
        outcome.ending, outcome.reason = "timeout", f"no end after {timeout_s:g} s"
    except aiohttp.ClientConnectorError as error:
        outcome.ending, outcome.reason = "no_connection", str(error)[:LONGEST_REASON]
    except (aiohttp.ClientError, OSError) as error:
        outcome.ending, outcome.reason = "cut_short", f"{type(error).__name__}: {error}"[:LONGEST_REASON]
    outcome.done_ns = time.monotonic_ns()


async def _follow(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    """Read the stream: each piece is stamped before it is looked at."""
    splitter, finished = wire.EventSplitter(), False
    async for piece in response.content.iter_any():
        now = time.monotonic_ns()
        for data in splitter.feed(piece):
            if data == wire.DONE:
                outcome.ending = "ok" if finished else "cut_short"
                outcome.reason = "" if finished else "[DONE] before a finish_reason"
                continue
            try:
                event = wire.decode(data)
            except msgspec.DecodeError as error:
                outcome.ending, outcome.reason = "bad_stream", f"{error}: {data[:80]!r}"
                return
            if event.error is not None:
                outcome.ending, outcome.reason = "bad_stream", f"error in the stream: {event.error}"[:LONGEST_REASON]
                return
            finished = finished or event.finish_reason is not None
            _count(event, now, outcome)
    if outcome.ending == "cut_short" and not outcome.reason:
        outcome.reason = "the stream ended without [DONE]"


def _count(event: wire.Event, now: int, outcome: Outcome) -> None:
    """What a chunk brought: by the usage that it carries, else a token where it has text."""
    has_text, new = event.has_text, 0
    if has_text and not outcome.first_ns:
        outcome.first_ns = now
    if event.usage is None:
        new = int(has_text)
        outcome.chunks_counted = outcome.chunks_counted or has_text
    else:
        outcome.prompt_tokens = event.usage.prompt_tokens
        total = event.usage.completion_tokens or 0
        if event.choices:
            new = total - outcome.output_tokens
        else:
            outcome.output_tokens = total
    if new > 0:
        outcome.chunk_ns.append(now)
        outcome.chunk_tokens.append(new)
        outcome.output_tokens += new


async def _beat(lags_ms: list[float]) -> None:
    """How late this loop is, at a steady beat."""
    due = time.monotonic()
    while True:
        due += BEAT_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late = time.monotonic() - due
        lags_ms.append(max(0.0, 1e3 * late))
        due = max(due, time.monotonic() - BEAT_S)


async def _open_loop(session: aiohttp.ClientSession, job: ClientJob, start_ns: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with asyncio.TaskGroup() as group:
        for one in job.requests:
            outcome = Outcome(one.number, start_ns + round(one.at_s * NS))
            outcomes.append(outcome)
            while (left_ns := outcome.intended_ns - time.monotonic_ns()) > 0:
                await asyncio.sleep(left_ns / NS)
            group.create_task(exchange(session, job.url, one.body, outcome, job.timeout_s))
    return outcomes


async def _closed_loop(session: aiohttp.ClientSession, job: ClientJob, start_ns: int, at_once: int) -> list[Outcome]:
    """So many users, each sending its next request when its last has ended; until until_s, or the requests' end."""
    outcomes: list[Outcome] = []
    waiting = iter(job.requests)
    end_ns = start_ns + round(job.until_s * NS) if job.until_s is not None else None

    async def user() -> None:
        for one in waiting:
            now = time.monotonic_ns()
            if end_ns is not None and now >= end_ns:
                return
            outcome = Outcome(one.number, now)
            outcomes.append(outcome)
            await exchange(session, job.url, one.body, outcome, job.timeout_s)

    await asyncio.sleep(max(0.0, (start_ns - time.monotonic_ns()) / NS))
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(user())
    return outcomes


async def drive(job: ClientJob, start_ns: int) -> ClientReport:
    """Send the job's requests; its clock starts at start_ns of time.monotonic_ns()."""
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_headers_sent)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if job.api_key:
        headers["Authorization"] = f"Bearer {job.api_key}"
    # No limit: a request that waits here for a connection would be the client's own queue.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, use_dns_cache=True, ttl_dns_cache=None)
    lags_ms: list[float] = []
    cpu, started = time.process_time(), time.monotonic()
    async with aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        trace_configs=[trace],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    ) as session:
        beat = asyncio.create_task(_beat(lags_ms))
        if job.concurrency is None:
            outcomes = await _open_loop(session, job, start_ns)
        else:
            outcomes = await _closed_loop(session, job, start_ns, job.concurrency)
        beat.cancel()
    return ClientReport(outcomes, lags_ms, time.process_time() - cpu, time.monotonic() - started)


def main() -> None:
    """Read the job, say that it is ready, wait for the start, drive, write the report."""
    asked, answered = Path(sys.argv[1]), Path(sys.argv[2])
    job = msgspec.msgpack.decode(asked.read_bytes(), type=ClientJob)
    # The plan lives to the end: a collection that walks through it would stop the clock's loop for milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    print("ready", flush=True)
    start_ns = int(sys.stdin.readline())
    report = uvloop.run(drive(job, start_ns))
    answered.write_bytes(msgspec.msgpack.encode(report))


if __name__ == "__main__":
    main()
