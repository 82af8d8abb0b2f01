"""The process that holds the engine: python -m serveproof.server.engine_process FILE_DESCRIPTOR JOB.

It takes requests from the socket between steps, steps while there is work, and sends what each step brought. It never
outlives the server.
"""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import sys
import time
import traceback

import msgspec

from serveproof.engine.config import find_model
from serveproof.engine.engine import Engine, Output
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware.start import start_torch
from serveproof.orphans import die_with_parent
from serveproof.server.frames import EngineEnd
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


def serve(engine: Engine, end: EngineEnd) -> None:
    """Take, step, send, until the server is gone."""
    said = 0.0
    while True:
        refused: dict[str, str] = {}
        for message in end.messages(0 if engine.busy else HEARTBEAT_S):
            take(engine, _DECODER.decode(message), refused)
        outputs: list[Output] = engine.step() if engine.busy else []
        now = time.monotonic()
        if outputs or refused or now - said >= HEARTBEAT_S:
            end.send(_ENCODE(Batch(outputs, engine.snapshot(), refused)))
            said = now


def main() -> None:
    """Start, say Ready or Failed, serve until killed."""
    die_with_parent()
    # Ctrl-C goes to the whole group: the server drains first and ends this process itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = EngineEnd(socket.socket(fileno=int(sys.argv[1])))
    try:
        engine = start(msgspec.json.decode(base64.b64decode(sys.argv[2]), type=Job))
    except UserError as error:
        end.send(_ENCODE(Failed(str(error))))
        raise SystemExit(2) from None
    except Exception as error:
        traceback.print_exc()
        end.send(_ENCODE(Failed(f"{type(error).__name__}: {error}".splitlines()[0])))
        raise SystemExit(1) from None
    with contextlib.suppress(EOFError, BrokenPipeError):
        end.send(_ENCODE(Ready(engine.scheduler.limits.max_model_len)))
        serve(engine, end)


if __name__ == "__main__":
    main()
