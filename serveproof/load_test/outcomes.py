"""What is planned and what became of it: one Planned and one Outcome a request. Times in ns on the monotonic clock,
which all processes of a machine share."""

from __future__ import annotations

from typing import Literal

import msgspec

Ending = Literal["ok", "refused", "http_error", "timeout", "cut_short", "no_connection", "bad_stream"]
# The server said something definite: an answer, or a whole error with its status.
ANSWERED = ("ok", "refused", "http_error")


class Planned(msgspec.Struct, array_like=True):
    """One request to send. at_s: its intended arrival from the start. kind: what the scenario calls it."""

    number: int
    at_s: float
    body: bytes
    tenant: str
    kind: str
    prompt_tokens: int
    output_tokens: int


class Outcome(msgspec.Struct, array_like=True):
    """What became of one request. 0 stands for what never happened.

    intended_ns: when it should have been sent; every latency is counted from there. written_ns: when its headers were
    given to the socket, for the first time, by aiohttp. chunk_ns, chunk_tokens: when each chunk with tokens arrived
    and how many tokens it brought. first_ns: the first chunk with text. done_ns: when the stream, or the error, ended.
    chunks_counted: chunks came without a usage, and one with text was taken for a token.
    """

    number: int
    intended_ns: int
    sent_ns: int = 0
    written_ns: int = 0
    first_ns: int = 0
    done_ns: int = 0
    chunk_ns: list[int] = []
    chunk_tokens: list[int] = []
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks_counted: bool = False
    status: int = 0
    ending: Ending = "cut_short"
    retry_after: bool = False
    reason: str = ""

    @property
    def end_ns(self) -> int:
        """When the last token arrived; 0 without one."""
        return self.chunk_ns[-1] if self.chunk_ns else 0


class ClientJob(msgspec.Struct):
    """What one client process is told. timeout_s: after that long from its intended arrival a request is given up.
    concurrency: closed loop, so many at once, each sent when one has ended, until until_s; None: open loop."""

    url: str
    requests: list[Planned]
    timeout_s: float
    api_key: str = ""
    concurrency: int | None = None
    until_s: float | None = None


class ClientReport(msgspec.Struct):
    """What one client process found. loop_lag_ms: how late its event loop was at a steady beat: what it was busy with
    then stamped everything that much later. cpu_s: its processor time."""

    outcomes: list[Outcome]
    loop_lag_ms: list[float]
    cpu_s: float
    seconds: float
