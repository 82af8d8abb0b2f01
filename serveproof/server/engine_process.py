"""The process that holds the engine: python -m serveproof.server.engine_process FILE_DESCRIPTOR JOB [RANK].

It takes requests from the socket between steps, steps while there is work, and sends what each step brought. It never
outlives the server. Of several ranks it is rank 0, and those with a RANK are its own children.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from serveproof import script
from serveproof.engine.engine import Engine, Output
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.parallel import SINGLE, Group
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware.start import start_torch
from serveproof.model_names import find_model
from serveproof.orphans import die_with_parent
from serveproof.server.frames import EngineEnd
from serveproof.server.tokens import load_tokenizer_of
from serveproof.server.wire import HEARTBEAT_S, Abort, Add, Batch, Failed, Job, Ready, ToEngine

if TYPE_CHECKING:
    from serveproof.server.ranks import Followers

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODER = msgspec.msgpack.Decoder(ToEngine)


def start(job: Job, group: Group = SINGLE) -> Engine:
    """The engine of a job, or a rank's: real weights of a directory, or random ones in a shape."""
    settings = job.settings
    start_torch(settings.device, max(1, job.threads // group.world))
    path = find_model(job.model)
    model = load_or_draw(path, 0, DTYPES[settings.dtype], settings.device, group)
    prepare_(model, settings.weights)
    tokenizer = load_tokenizer_of(path, model.config.vocab_size)
    say = partial(script.say, None) if group.rank == 0 else lambda _: None
    return start_with(model, settings, tokenizer, say)


def take(engine: Engine, messages: Sequence[Add | Abort]) -> dict[str, str]:
    """Do what they ask; the requests that can't be served, each with the reason."""
    refused = {}
    for message in messages:
        if isinstance(message, Abort):
            for request_id in message.request_ids:
                engine.abort(request_id)
            continue
        try:
            engine.add(
                message.request_id,
                message.prompt,
                message.params,
                message.tenant,
                message.priority,
                message.ttft_target_s,
            )
        except UserError as error:
            refused[message.request_id] = str(error)
    return refused


def serve(engine: Engine, end: EngineEnd, followers: Followers | None = None) -> None:
    """Take, tell the other ranks, step, send, until the server is gone."""
    said = 0.0
    while True:
        messages = [_DECODER.decode(one) for one in end.messages(0 if engine.busy else HEARTBEAT_S)]
        outputs: list[Output] = []
        refused: dict[str, str] = {}
        if messages or engine.busy:
            if followers is not None:
                messages = followers.tell(engine, messages)
            refused = take(engine, messages)
            outputs = engine.step() if engine.busy else []
            if followers is not None:
                followers.brought = outputs
        now = time.monotonic()
        if outputs or refused or now - said >= HEARTBEAT_S:
            end.send(_ENCODE(Batch(outputs, engine.snapshot(), refused)))
            said = now


@contextlib.contextmanager
def engine_of_ranks(job: Job, text: str, end: EngineEnd, ready: threading.Event) -> Iterator[tuple[Engine, Followers]]:
    """Rank 0's engine, the others started; this process ends with any of theirs."""
    from serveproof.server import ranks

    def lost(what: str) -> None:
        if not ready.is_set():
            with contextlib.suppress(OSError):  # the server may be gone
                end.send(_ENCODE(Failed(f"{what} while the engine started; its log says why")))
        script.say(None, f"serveproof: the engine's {what}: all ranks end")
        os._exit(1)  # the main thread may be inside a collective that never ends

    ranks.check(job)
    followers = ranks.start_followers(job.ranks, text, lost)
    with ranks.shared(job.settings, lambda group: start(job, group)) as engine:
        yield engine, followers


def follow(job: Job, end: EngineEnd) -> None:
    """A rank other than 0: does what rank 0 does, until that is gone."""
    from serveproof.server import ranks

    try:
        with (
            contextlib.suppress(EOFError),
            ranks.shared(job.settings, lambda group: start(job, group)) as engine,
        ):
            brought: list[Output] = []
            for turn in ranks.turns(end):
                take(engine, ranks.heed(turn, engine, brought))
                brought = engine.step() if engine.busy else []
    except UserError:
        # every rank was told, and rank 0 tells the server: it would take this process's end for the reason
        signal.pause()


def lead(job: Job, text: str, end: EngineEnd) -> None:
    """Start, say Ready or Failed, serve until the server is gone."""
    ready = threading.Event()
    with contextlib.suppress(EOFError, BrokenPipeError), contextlib.ExitStack() as stack:
        try:
            if job.ranks == 1:
                engine, followers = start(job), None
            else:
                engine, followers = stack.enter_context(engine_of_ranks(job, text, end, ready))
        except UserError as error:
            end.send(_ENCODE(Failed(str(error))))
            raise SystemExit(2) from None
        except Exception as error:
            traceback.print_exc()
            end.send(_ENCODE(Failed(f"{type(error).__name__}: {error}".splitlines()[0])))
            raise SystemExit(1) from None
        ready.set()
        end.send(_ENCODE(Ready(engine.scheduler.limits.max_model_len)))
        serve(engine, end, followers)


def main() -> None:
    """A rank's life, to which only SIGKILL puts an end."""
    die_with_parent()
    # Ctrl-C goes to the whole group: the server drains first and ends this process itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = EngineEnd(socket.socket(fileno=int(sys.argv[1])))
    text = sys.argv[2]
    job = msgspec.json.decode(base64.b64decode(text), type=Job)
    if len(sys.argv) > 3:
        follow(job, end)
    else:
        lead(job, text, end)


if __name__ == "__main__":
    main()
