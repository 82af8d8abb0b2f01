"""Answers that end when their client does: a stream that is written as it comes, a whole answer that is waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response

T = TypeVar("T")


class HungUp(Exception):
    """The client closed its connection before its answer was there."""


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_hung_up(work: Awaitable[T], receive: Callable[[], Awaitable[Any]]) -> T:
    """The result of `work`; HungUp, and the work cancelled, when the client goes first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


class EventStream(Response):
    """Server-sent events from an iterator, which is closed as soon as the client hangs up. A client that reads slowly
    makes the iterator wait: what waits is bounded by its answer's length."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self.events = events
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the head, then each piece as it comes. scope is part of ASGI's signature."""
        del scope

        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in self.events:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await unless_hung_up(write(), receive)
        except HungUp:
            pass
        finally:
            close = getattr(self.events, "aclose", None)
            if close is not None:
                await close()
