"""A server of OpenAI's wire format that computes nothing: what the client and its figures are tried against.

`python -m serveproof.load_test.null_server --port 0 --behaviour '{"first_token_ms": 20}'` prints its port. Its
latencies are known and its faults are planted by request number (the request's seed), so the figures can be held
against what really happened.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Behaviour(msgspec.Struct, forbid_unknown_fields=True):
    """What the server does. Every *_every is a period over request numbers, 0 for never; all times in ms.

    slots: so many requests are served at once and the others wait in turn; 0: all at once. refuse_beyond: a 429 when
    so many wait. freeze_at_s, freeze_ms: so long after its first request the whole server stops for so long.
    usage: none, last (one at the end) or continuous. tokens_per_chunk: how many tokens come together.
    """

    first_token_ms: float = 0.0
    gap_ms: float = 0.0
    slow_every: int = 0
    slow_first_token_ms: float = 0.0
    stall_every: int = 0
    stall_ms: float = 0.0
    error_every: int = 0
    hang_up_every: int = 0
    silent_every: int = 0
    garbage_every: int = 0
    no_done_every: int = 0
    freeze_at_s: float = 0.0
    freeze_ms: float = 0.0
    slots: int = 0
    refuse_beyond: int = 0
    usage: str = "continuous"
    tokens_per_chunk: int = 1


class Asked(msgspec.Struct):
    """What it reads of a request."""

    prompt: str | list[int] = ""
    max_tokens: int = 16
    max_completion_tokens: int | None = None
    seed: int = 0
    user: str = ""
    priority: int = 0


class Waiting:
    """A request in the queue; called when its turn has come."""

    def __init__(self, asked: Asked, begin: Callable[[], None]) -> None:
        self.asked, self.begin = asked, begin

    def __call__(self) -> None:
        self.begin()


class State:
    """What all connections share."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.running = 0
        self.waiting: list[Waiting] = []
        self.frozen = False

    def first_request(self) -> None:
        """Plan the freeze, once."""
        if self.behaviour.freeze_ms and not self.frozen:
            self.frozen = True
            loop = asyncio.get_running_loop()
            loop.call_later(self.behaviour.freeze_at_s, time.sleep, self.behaviour.freeze_ms / 1e3)

    def release(self) -> None:
        """One request has ended: the next in turn."""
        if self.waiting:
            self.waiting.pop(0)()
        else:
            self.running -= 1

    def metrics(self) -> bytes:
        """/metrics under vLLM's names."""
        used = min(1.0, self.running / self.behaviour.slots) if self.behaviour.slots else 0.0
        rows: dict[str, float] = {"num_requests_running": self.running, "num_requests_waiting": len(self.waiting)}
        rows |= {"kv_cache_usage_perc": used}
        text = "".join(f"# TYPE vllm:{name} gauge\nvllm:{name} {value}\n" for name, value in rows.items())
        return text.encode()


class Connection(asyncio.Protocol):
    """One client's connection: one request after another."""

    def __init__(self, state: State) -> None:
        self.state, self.buffer = state, b""
        self.transport: asyncio.Transport | None = None
        self.open_request = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is none of asyncio's

    def connection_lost(self, _exc: Exception | None) -> None:
        self.transport = None
        if self.open_request:
            self.open_request = False
            self.state.release()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            length, lower = 0, head.lower()
            if (at := lower.find(b"content-length:")) >= 0:
                length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(head.split(b" ", 2)[1], body)

    def write(self, data: bytes) -> None:
        if self.transport:
            self.transport.write(data)

    def whole(self, status: str, body: bytes, more: str = "") -> None:
        """A whole response."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.write(head.encode() + body)

    def answer(self, path: bytes, body: bytes) -> None:
        """Route one request."""
        state, behaviour = self.state, self.state.behaviour
        if path == b"/metrics":
            return self.whole("200 OK", state.metrics())
        if path == b"/v1/models":
            return self.whole("200 OK", b'{"object":"list","data":[{"id":"null","object":"model"}]}')
        if not path.startswith(b"/v1/"):
            return self.whole("200 OK", b"{}")
        asked = msgspec.json.decode(body, type=Asked)
        state.first_request()

        def every(period: int) -> bool:
            return period > 0 and asked.seed % period == 0

        if every(behaviour.error_every):
            return self.whole("500 Internal Server Error", b'{"error":{"message":"planted","type":"server_error"}}')
        if every(behaviour.silent_every):
            return None
        if behaviour.slots and state.running >= behaviour.slots:
            if behaviour.refuse_beyond and len(state.waiting) >= behaviour.refuse_beyond:
                error = b'{"error":{"message":"too many requests","type":"overloaded"}}'
                return self.whole("429 Too Many Requests", error, "Retry-After: 1\r\n")
            self.open_request = True
            state.waiting.append(Waiting(asked, lambda: self.serve(asked, every, path)))
            return None
        state.running += 1
        self.open_request = True
        return self.serve(asked, every, path)

    def serve(self, asked: Asked, every: Callable[[int], bool], path: bytes) -> None:
        """Stream one answer, each chunk at its time."""
        if not self.transport:
            return self.state.release()
        behaviour, loop = self.state.behaviour, asyncio.get_running_loop()
        chat = path.endswith(b"chat/completions")
        tokens = asked.max_completion_tokens or asked.max_tokens
        prompt_tokens = len(asked.prompt)
        self.write(HEAD)
        if chat:
            self.chunk(b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
        first_ms = behaviour.slow_first_token_ms if every(behaviour.slow_every) else behaviour.first_token_ms
        due, sent = loop.time() + first_ms / 1e3, 0

        def step() -> None:
            nonlocal due, sent
            if not self.transport:
                return None
            if every(behaviour.hang_up_every) and sent >= tokens // 2:
                return self.transport.abort()
            if every(behaviour.garbage_every) and sent >= tokens // 2:
                return self.chunk(b"{not json")
            sent = min(tokens, sent + behaviour.tokens_per_chunk)
            last = sent == tokens
            text = '"delta":{"content":" a"}' if chat else '"text":" a"'
            kind = "chat.completion.chunk" if chat else "text_completion"
            usage = f',"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{sent}}}'
            finish = '"length"' if last else "null"
            self.chunk(
                f'{{"object":"{kind}","choices":[{{"index":0,{text},"finish_reason":{finish}}}]'
                f"{usage if behaviour.usage == 'continuous' else ''}}}".encode()
            )
            if last:
                if behaviour.usage != "none":
                    self.chunk(f'{{"choices":[]{usage}}}'.encode())
                if not every(behaviour.no_done_every):
                    self.chunk(b"[DONE]")
                self.write(b"0\r\n\r\n")
                self.open_request = False
                return self.state.release()
            stalled = every(behaviour.stall_every) and sent == tokens // 2
            due += (behaviour.stall_ms if stalled else behaviour.gap_ms) / 1e3
            loop.call_at(due, step)
            return None

        loop.call_at(due, step)
        return None

    def chunk(self, data: bytes) -> None:
        """One event as one chunk of the transfer encoding."""
        event = b"data: " + data + b"\n\n"
        self.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


async def serve(port: int, behaviour: Behaviour) -> None:
    """Serve until SIGTERM; prints the port."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    state = State(behaviour)
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", default="{}", help="Behaviour as JSON")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, msgspec.json.decode(arguments.behaviour, type=Behaviour)))


if __name__ == "__main__":
    main()
