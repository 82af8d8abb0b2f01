"""The server's side of the engine's process: start it, send it requests, hand out what comes back, notice when it dies.

A dead engine ends every request that it had, and is started again; one that has stopped stepping is reported by
`problem` and left alone, for a long step is no fault.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from serveproof.engine.engine import Output, Snapshot
from serveproof.server.frames import framed, read_frame
from serveproof.server.wire import Abort, Add, Batch, Failed, FromEngine, Job, Ready

RESTART_WAIT_S = 1.0
_ENCODE = msgspec.msgpack.Encoder().encode
_DECODER = msgspec.msgpack.Decoder(FromEngine)


class EngineGone(Exception):
    """There is no engine any more for this request; the message says why."""


class Refused(Exception):
    """The engine can't serve this request; the message is for its sender."""


class Answer:
    """What comes back for the engine requests of one API request, in order of arrival."""

    def __init__(self, request_ids: Sequence[str]) -> None:
        self.open = set(request_ids)
        self.arrived: deque[Output] = deque()
        self.fault: Exception | None = None
        self._news = asyncio.Event()

    def put(self, output: Output) -> None:
        """Take in one output."""
        if output.finish_reason is not None:
            self.open.discard(output.request_id)
        self.arrived.append(output)
        self._news.set()

    def fail(self, fault: Exception) -> None:
        """End it with a fault."""
        self.fault = fault
        self._news.set()

    async def outputs(self) -> AsyncIterator[list[Output]]:
        """What has arrived since last time, until all is there. Raises the fault, if there was one."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self.fault is not None:
                raise self.fault
            found = list(self.arrived)
            self.arrived.clear()
            if found:
                yield found
            if not self.open and not self.arrived:  # more may have come while these were written
                return


class EngineClient:
    """One engine. stall_s: without word for so long it counts as stopped. said: told of every batch, for metrics."""

    def __init__(self, job: Job, stall_s: float, said: Callable[[Batch], object] = lambda _: None) -> None:
        self.job, self.stall_s, self.said = job, stall_s, said
        self.when_failed: Callable[[], object] = lambda: None
        self.answers: dict[str, Answer] = {}
        self.ready: Ready | None = None
        self.failed: str = ""
        self.snapshot: Snapshot | None = None
        self.heard_s = time.monotonic()
        self.restarts = 0
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Why it can't serve now; '' when it can."""
        if self.failed:
            return self.failed
        if self.ready is None:
            return "the engine is starting"
        silent_s = time.monotonic() - self.heard_s
        return f"the engine has not stepped for {silent_s:.0f} s" if silent_s > self.stall_s else ""

    @property
    def process_id(self) -> int | None:
        """Of the engine's process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin to keep an engine running; returns at once."""
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the engine's process and everything else."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def submit(self, requests: Sequence[Add]) -> Answer:
        """Send requests; their outputs go to one Answer. EngineGone when there is no engine."""
        if self._writer is None or self.ready is None:
            raise EngineGone(self.problem or "the engine is starting")
        answer = Answer([one.request_id for one in requests])
        for one in requests:
            self.answers[one.request_id] = answer
            self._send(one)
        return answer

    def forget(self, answer: Answer) -> None:
        """Abort what of an answer is still open; of one that is whole, nothing."""
        still = [request_id for request_id in answer.open if self.answers.pop(request_id, None)]
        if still and self._writer is not None and answer.fault is None:
            self._send(Abort(still))

    def end_all(self, reason: str) -> None:
        """End every answer that is still open with EngineGone."""
        answers, self.answers = set(self.answers.values()), {}
        for answer in answers:
            answer.fail(EngineGone(reason))

    def _send(self, message: Add | Abort) -> None:
        assert self._writer is not None  # noqa: S101 (told to mypy)
        self._writer.write(framed(_ENCODE(message)))

    async def _keep(self) -> None:
        while True:
            await self._run_once()
            self.end_all(self.failed or "the engine's process ended; it is being started again")
            if self.failed:
                self.when_failed()
                return
            self.restarts += 1
            await asyncio.sleep(RESTART_WAIT_S)

    async def _run_once(self) -> None:
        """One life of the engine's process."""
        self.ready, self.snapshot = None, None
        own, engines = socket.socketpair()
        job = base64.b64encode(msgspec.json.encode(self.job)).decode()
        with engines:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serveproof.server.engine_process", str(engines.fileno()), job,
                pass_fds=(engines.fileno(),),
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=own)
        try:
            # the engine's end closes with its process
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    self._heard(_DECODER.decode(await read_frame(reader)))
            await self._process.wait()
        finally:
            self.ready = None
            writer, self._writer = self._writer, None
            writer.close()

    def _heard(self, message: FromEngine) -> None:
        self.heard_s = time.monotonic()
        if isinstance(message, Batch):
            self._hand_out(message)
        elif isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, Failed):
            self.failed = message.reason

    def _hand_out(self, batch: Batch) -> None:
        self.snapshot = batch.snapshot
        for output in batch.outputs:
            answer = self.answers.get(output.request_id)
            if answer is None:
                continue
            if output.finish_reason is not None:
                del self.answers[output.request_id]
            answer.put(output)
        for request_id, reason in batch.refused.items():
            answer = self.answers.pop(request_id, None)
            if answer is not None:
                answer.fail(Refused(reason))
        self.said(batch)
