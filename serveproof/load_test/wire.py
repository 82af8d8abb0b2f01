"""OpenAI's wire format as the client needs it: a request's body, and what one event of the stream says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
DONE = b"[DONE]"


class Delta(msgspec.Struct):
    """A chat chunk's addition; reasoning models answer in a field of their own before `content`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """One choice of one chunk: `text` of completions, `delta` of chat."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """Tokens so far (continuous usage stats) or in all."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Event(msgspec.Struct):
    """One `data:` of the stream; a server may report a fault in the middle of it."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None

    @property
    def has_text(self) -> bool:
        """Whether it brings something to read: a role alone, or an empty text, does not."""
        for choice in self.choices:
            delta = choice.delta
            if choice.text or (delta and (delta.content or delta.reasoning_content or delta.reasoning)):
                return True
        return False

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, in the chunk that says so."""
        return next((choice.finish_reason for choice in self.choices if choice.finish_reason), None)


_DECODER = msgspec.json.Decoder(Event)


def decode(data: bytes) -> Event:
    """One event's JSON. msgspec.DecodeError where it is none."""
    return _DECODER.decode(data)


class EventSplitter:
    """Server-sent events from whatever pieces the network delivers (WHATWG HTML, section 9.2): the data of each."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The `data` of each line that is complete now; comments and other fields are passed over."""
        lines = (self.rest + piece).split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def body(
    route: str,
    model: str,
    prompt: str | list[int],
    output_tokens: int,
    *,
    tenant: str = "",
    priority: int = 0,
    seed: int = 0,
    greedy: bool = True,
) -> bytes:
    """A streamed request of exactly output_tokens tokens, as JSON.

    ignore_eos and continuous_usage_stats are vLLM's and SGLang's additions; the tenant is OpenAI's `user`, priority is
    vLLM's and is sent only when it is not 0, for a server without it may refuse it.
    """
    made: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "ignore_eos": True,
        "temperature": 0.0 if greedy else 1.0,
        "seed": seed,
    }
    if route == "chat":
        made |= {"messages": [{"role": "user", "content": prompt}], "max_completion_tokens": output_tokens}
    else:
        made |= {"prompt": prompt, "max_tokens": output_tokens}
    if tenant:
        made["user"] = tenant
    if priority:
        made["priority"] = priority
    return msgspec.json.encode(made)
