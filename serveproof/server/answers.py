"""What the engine brings as OpenAI's answers: one choice as it grows, whole answers, and the events of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serveproof.engine.engine import Output
from serveproof.server.prepare import Model
from serveproof.server.tokens import shown
from serveproof.server.wire import Add

DONE = b"data: [DONE]\n\n"
Row = dict[int, float]


@dataclass
class Choice:
    """One choice so far. rows: log-probabilities, a token each. first_s, last_s: when its tokens came (monotonic)."""

    index: int
    prompt: list[int]
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    prompt_rows: list[Row] = field(default_factory=list)
    finish_reason: str | None = None
    first_s: float = 0.0
    last_s: float = 0.0

    def take(self, output: Output) -> None:
        """Add what one step brought."""
        self.text.append(output.text)
        self.tokens += output.tokens
        self.rows += output.logprobs
        self.prompt_rows += output.prompt_logprobs
        self.finish_reason = output.finish_reason


@dataclass(frozen=True)
class Form:
    """How one API request is to be answered. kind: cmpl or chatcmpl. max_tokens 0: the prompt alone was asked for."""

    id: str
    kind: str
    model: Model
    logprobs: bool = False
    echo: bool = False
    no_text: bool = False
    usage: bool = False
    continuous_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        """Whether it is a chat's."""
        return self.kind == "chatcmpl"

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer and chunk begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}


def usage_of(choices: list[Choice], completion_tokens: int) -> dict[str, Any]:
    """Tokens so far: a prompt counts once, however many choices it has."""
    read = sum({id(one.prompt): len(one.prompt) for one in choices}.values())
    return {"prompt_tokens": read, "completion_tokens": completion_tokens, "total_tokens": read + completion_tokens}


def _top(row: Row) -> list[tuple[int, float]]:
    """A row's tokens, the most likely first."""
    return sorted(row.items(), key=lambda item: -item[1])


def completion_logprobs(form: Form, tokens: list[int], rows: list[Row | None], begin: int) -> dict[str, Any]:
    """The lists that /v1/completions gives. begin: characters before the first token."""
    names = [shown(form.model.tokenizer, token) for token in tokens]
    offsets, at = [], begin
    for name in names:
        offsets.append(at)
        at += len(name)
    return {
        "tokens": names,
        "token_logprobs": [None if row is None else row[token] for token, row in zip(tokens, rows, strict=True)],
        "top_logprobs": [
            None if row is None else {shown(form.model.tokenizer, other): value for other, value in _top(row)}
            for row in rows
        ],
        "text_offset": offsets,
    }


def chat_logprobs(form: Form, tokens: list[int], rows: list[Row], asked: int) -> dict[str, Any]:
    """The list that chat gives: each token, its bytes, and the most likely ones."""

    def one(token: int, value: float) -> dict[str, Any]:
        name = shown(form.model.tokenizer, token)
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    return {
        "content": [
            one(token, row[token]) | {"top_logprobs": [one(*item) for item in _top(row)[:asked]]}
            for token, row in zip(tokens, rows, strict=True)
        ]
    }


def whole(form: Form, choices: list[Choice], top_logprobs: int = 0) -> bytes:
    """The whole answer."""
    made = []
    for one in choices:
        text = "" if form.no_text else "".join(one.text)
        tokens, rows = ([], []) if form.no_text else (one.tokens, one.rows)
        if form.chat:
            logprobs = chat_logprobs(form, tokens, rows, top_logprobs) if form.logprobs else None
            message = {"role": "assistant", "content": text, "refusal": None}
            made.append(
                {"index": one.index, "message": message, "logprobs": logprobs, "finish_reason": one.finish_reason}
            )
            continue
        known: list[Row | None] = list(rows)
        if form.echo:
            text = form.model.tokenizer.decode(one.prompt, skip_special_tokens=False) + text
            tokens, known = one.prompt + tokens, [None, *one.prompt_rows, *rows]
        logprobs = completion_logprobs(form, tokens, known, 0) if form.logprobs else None
        reason = "length" if form.no_text else one.finish_reason
        made.append({"index": one.index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    kind = "chat.completion" if form.chat else "text_completion"
    generated = 0 if form.no_text else sum(len(one.tokens) for one in choices)
    return msgspec.json.encode(form.head(kind) | {"choices": made, "usage": usage_of(choices, generated)})


class Stream:
    """The events of one streamed answer."""

    def __init__(self, form: Form, choices: list[Choice], top_logprobs: int = 0) -> None:
        self.form, self.choices, self.top_logprobs = form, choices, top_logprobs
        self.head = form.head("chat.completion.chunk" if form.chat else "text_completion")
        self.shown, self.generated = [0] * len(choices), 0
        self.begun: set[int] = set()

    def event(self, choice: Choice, output: Output) -> bytes:
        """The event of one output, which `choice` has taken already."""
        form, begun = self.form, self.shown[choice.index]
        self.shown[choice.index] += len(output.text)
        self.generated += len(output.tokens)
        made: dict[str, Any]
        logprobs: dict[str, Any] | None = None
        if form.chat:
            delta: dict[str, Any] = {"content": output.text}
            if choice.index not in self.begun:
                self.begun.add(choice.index)
                delta = {"role": "assistant", **delta}
            if form.logprobs:
                logprobs = chat_logprobs(form, list(output.tokens), list(output.logprobs), self.top_logprobs)
            made = {"index": choice.index, "delta": delta}
        else:
            if form.logprobs:
                logprobs = completion_logprobs(form, list(output.tokens), list(output.logprobs), begun)
            made = {"index": choice.index, "text": output.text}
        made |= {"logprobs": logprobs, "finish_reason": output.finish_reason}
        content = self.head | {"choices": [made]}
        if form.continuous_usage:
            content["usage"] = usage_of(self.choices, self.generated)
        elif form.usage:
            content["usage"] = None
        return _event(content)

    def last(self) -> bytes:
        """The usage, where it was asked for, and the end."""
        usage = (
            _event(self.head | {"choices": [], "usage": usage_of(self.choices, self.generated)})
            if self.form.usage
            else b""
        )
        return usage + DONE


def fault_event(content: dict[str, Any]) -> bytes:
    """A fault in the middle of a stream, whose status was sent long ago."""
    return _event(content)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def choices_of(requests: list[Add]) -> dict[str, Choice]:
    """A choice for each request to the engine, by its id."""
    return {one.request_id: Choice(index, one.prompt) for index, one in enumerate(requests)}
