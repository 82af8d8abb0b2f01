"""The process that holds the engine: python -m serveproof.server.engine_process ADDRESS JOB.

It takes requests from the socket between steps, steps while there is work, and sends what each step brought. It never
outlives the server.
"""

from __future__ import annotations

import base64
import signal
import sys
import time
import traceback

import msgspec
import zmq

from serveproof.engine.engine import Engine, Output
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import find_model, load_or_draw
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware.start import start_torch
from serveproof.orphans import die_with_parent
from serveproof.server.tokens import load_tokenizer_of
from serveproof.server.wire import HEARTBEAT_S, Abort, Add, Batch, Failed, Job, Ready, ToEngine

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODER = msgspec.msgpack.Decoder(ToEngine)


def start(job: Job) -> Engine:
    """The engine of a job: real weights of a directory, or random ones in a shape."""
    settings = job.settings
    start_torch(settings.device, job.threads)
    path = find_model(job.model)
    model = load_or_draw(path, 0, DTYPES[settings.dtype], settings.device)
    prepare_(model, settings.weights)
    tokenizer = load_tokenizer_of(path, model.config.vocab_size)
    return start_with(model, settings, tokenizer, lambda text: print(text, file=sys.stderr, flush=True))


def take(engine: Engine, message: Add | Abort, refused: dict[str, str]) -> None:
    """Do what one message asks; a request that can't be served is put among the refused, with the reason."""
    if isinstance(message, Abort):
        for request_id in message.request_ids:
            engine.abort(request_id)
        return
    try:
        engine.add(
            message.request_id, message.prompt, message.params, message.tenant, message.priority, message.ttft_target_s
        )
    except UserError as error:
        refused[message.request_id] = str(error)


def serve(engine: Engine, socket: zmq.Socket[bytes]) -> None:
    """Take, step, send, for ever."""
    said = 0.0
    while True:
        refused: dict[str, str] = {}
        wait_ms = 0 if engine.busy else int(HEARTBEAT_S * 1000)
        while socket.poll(wait_ms):
            take(engine, _DECODER.decode(socket.recv()), refused)
            wait_ms = 0
        outputs: list[Output] = engine.step() if engine.busy else []
        now = time.monotonic()
        if outputs or refused or now - said >= HEARTBEAT_S:
            socket.send(_ENCODE(Batch(outputs, engine.snapshot(), refused)))
            said = now


def main() -> None:
    """Start, say Ready or Failed, serve until killed."""
    die_with_parent()
    # Ctrl-C goes to the whole group: the server drains first and ends this process itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    socket = zmq.Context().socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(sys.argv[1])
    try:
        engine = start(msgspec.json.decode(base64.b64decode(sys.argv[2]), type=Job))
    except UserError as error:
        socket.send(_ENCODE(Failed(str(error))))
        socket.close(linger=2000)
        raise SystemExit(2) from None
    except Exception as error:
        traceback.print_exc()
        socket.send(_ENCODE(Failed(f"{type(error).__name__}: {error}".splitlines()[0])))
        socket.close(linger=2000)
        raise SystemExit(1) from None
    socket.send(_ENCODE(Ready(engine.scheduler.limits.max_model_len)))
    serve(engine, socket)


if __name__ == "__main__":
    main()
