"""From requests to the engine to an answer for the client: counted, timed, and given up when the client is gone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response

from serveproof.server import answers
from serveproof.server.answers import Choice, Form, Stream
from serveproof.server.engine_client import EngineClient, EngineGone, Refused
from serveproof.server.errors import ApiError
from serveproof.server.event_stream import EventStream, HungUp, unless_hung_up
from serveproof.server.gate import Gate
from serveproof.server.wire import Add
from serveproof.telemetry.engine_metrics import EngineMetrics

HUNG_UP = 499  # nginx's number for it; nobody reads it


class Answering:
    """One API request on its way. The gate is entered at once, and left when the last choice has ended."""

    def __init__(
        self,
        client: EngineClient,
        gate: Gate,
        metrics: EngineMetrics,
        form: Form,
        requests: list[Add],
        top_logprobs: int,
    ) -> None:
        self.client, self.gate, self.metrics, self.form = client, gate, metrics, form
        self.top_logprobs = top_logprobs
        self.choices = answers.choices_of(requests)
        self.begun_s = time.monotonic()
        self.tenant = requests[0].tenant
        gate.enter(len(requests), self.tenant)
        try:
            self.answer = client.submit(requests)
        except EngineGone as error:
            gate.leave(len(requests), self.tenant)
            raise ApiError(503, str(error), headers={"Retry-After": "1"}) from None

    def close(self) -> None:
        """Give up what is still open; once."""
        if self.choices:
            self.client.forget(self.answer)
            self.gate.leave(len(self.choices), self.tenant)
            self.choices = {}

    async def _taken(self) -> AsyncIterator[list[tuple[Choice, Any]]]:
        """Outputs as they come, each already part of its choice."""
        async for outputs in self.answer.outputs():
            now = time.monotonic()
            taken = []
            for output in outputs:
                choice = self.choices[output.request_id]
                choice.take(output)
                self._observe(choice, len(output.tokens), output.finish_reason, now)
                if output.error:
                    raise ApiError(500, output.error)
                taken.append((choice, output))
            yield taken

    def _observe(self, choice: Choice, tokens: int, finish_reason: str | None, now: float) -> None:
        seen = self.metrics.observe
        if tokens and not choice.first_s:
            choice.first_s = now
            seen("serveproof_time_to_first_token_seconds", now - self.begun_s)
            self.metrics.add("serveproof_prompt_tokens", len(choice.prompt))
        elif tokens:
            for _ in range(tokens):
                seen("serveproof_inter_token_latency_seconds", (now - choice.last_s) / tokens)
        if tokens:
            choice.last_s = now
            self.metrics.add("serveproof_generation_tokens", tokens)
        if finish_reason is None:
            return
        count = len(choice.tokens)
        self.metrics.add("serveproof_requests_finished", 1, finish_reason)
        seen("serveproof_request_latency_seconds", now - self.begun_s)
        seen("serveproof_request_prompt_tokens", len(choice.prompt))
        seen("serveproof_request_generation_tokens", count)
        if count > 1:
            seen("serveproof_time_per_output_token_seconds", (choice.last_s - choice.first_s) / (count - 1))

    async def whole(self, receive: Callable[[], Awaitable[Any]]) -> Response:
        """The whole answer in one piece. ApiError for what the engine says; an empty one for a client that left."""

        async def gather() -> bytes:
            async for _ in self._taken():
                pass
            return answers.whole(self.form, list(self.choices.values()), self.top_logprobs)

        try:
            body = await unless_hung_up(gather(), receive)
        except HungUp:
            self._aborted()
            return Response(status_code=HUNG_UP)
        except (EngineGone, Refused) as error:
            raise _said(error) from None
        finally:
            self.close()
        return Response(body, media_type="application/json")

    async def streamed(self, receive: Callable[[], Awaitable[Any]]) -> Response:
        """A stream; what goes wrong before its first token still gets a status of its own."""
        taken = self._taken()
        try:
            first = await unless_hung_up(anext(taken), receive)
        except HungUp:
            self._aborted()
            self.close()
            return Response(status_code=HUNG_UP)
        except (EngineGone, Refused) as error:
            self.close()
            raise _said(error) from None
        except ApiError:
            self.close()
            raise
        return EventStream(self._events(first, taken))

    async def _events(self, first: list[Any], taken: AsyncIterator[list[tuple[Choice, Any]]]) -> AsyncIterator[bytes]:
        stream = Stream(self.form, list(self.choices.values()), self.top_logprobs)
        whole = False
        try:
            yield b"".join(stream.event(*one) for one in first)
            async for some in taken:
                yield b"".join(stream.event(*one) for one in some)
            whole = True
            yield stream.last()
        except (EngineGone, Refused) as error:
            whole = True
            yield answers.fault_event(_said(error).content) + answers.DONE
        except ApiError as error:
            whole = True
            yield answers.fault_event(error.content) + answers.DONE
        finally:
            if not whole:
                self._aborted()
            self.close()

    def _aborted(self) -> None:
        still = sum(choice.finish_reason is None for choice in self.choices.values())
        self.metrics.add("serveproof_requests_finished", still, "abort")


def _said(error: Exception) -> ApiError:
    if isinstance(error, Refused):
        return ApiError(400, str(error))
    return ApiError(503, str(error), headers={"Retry-After": "1"})
