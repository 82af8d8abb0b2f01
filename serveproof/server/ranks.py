"""The engine over several ranks of this host, tensor parallel: every rank runs the same schedule on its share.

The engine's process is rank 0 and starts the others. Before each step it sends them what the server sent, so that all
queue the same requests at the same times; the step's own collectives keep them together. When one of the processes
ends, all end, and the server starts the engine again.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import torch

from serveproof import script
from serveproof.distributed.direct import direct_sum
from serveproof.distributed.group import SharedError, joined
from serveproof.engine.engine import Engine, Output
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.parallel import Group
from serveproof.engine.settings import Settings
from serveproof.errors import UserError
from serveproof.ports import free_port
from serveproof.server.frames import EngineEnd
from serveproof.server.wire import Abort, Add, Job, Turn

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODER = msgspec.msgpack.Decoder(Turn)
WAIT_S = 1.0


@dataclass
class Followers:
    """The other ranks, as rank 0 has them: its ends of the sockets to them, and what its own last turn brought."""

    ends: list[EngineEnd]
    brought: Sequence[Output] = ()

    def tell(self, engine: Engine, messages: Sequence[Add | Abort]) -> list[Add | Abort]:
        """Before a turn, tell the others what came and what the turn before brought; what to take here."""
        turn = Turn([_seeded(one) for one in messages], engine.clock(), _checksum(self.brought))
        told = _ENCODE(turn)
        for end in self.ends:
            end.send(told)
        return turn.messages


def start_followers(ranks: int, job: str, lost: Callable[[str], object]) -> Followers:
    """Start every rank but 0, which this process becomes.

    lost: told when one has ended, in a thread of its own; it must end this process.
    """
    # those that torchrun or a cluster may have set are of other ranks than these
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **_place(0, ranks)}
    return Followers([_follower(rank, ranks, job, lost) for rank in range(1, ranks)])


def _follower(rank: int, ranks: int, job: str, lost: Callable[[str], object]) -> EngineEnd:
    own, theirs = socket.socketpair()
    command = [sys.executable, "-m", "serveproof.server.engine_process", str(theirs.fileno()), job, str(rank)]
    with theirs:
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=os.environ | _place(rank, ranks))
    watch = threading.Thread(target=lambda: lost(f"rank {rank} ended with code {process.wait()}"), daemon=True)
    watch.start()
    return EngineEnd(own)


def _place(rank: int, ranks: int) -> dict[str, str]:
    """In torchrun's variables."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(value) for name, value in numbers.items()}


def turns(end: EngineEnd) -> Iterator[Turn]:
    """Rank 0's, as it tells them. EOFError when it is gone."""
    while True:
        yield from map(_DECODER.decode, end.messages(WAIT_S))


def heed(turn: Turn, engine: Engine, brought: Sequence[Output]) -> list[Add | Abort]:
    """What to take in a turn; requests arrive by rank 0's clock. brought: what this rank's turn before brought.

    RuntimeError where rank 0's brought something else.
    """
    if turn.brought != _checksum(brought):
        raise RuntimeError(f"after step {engine.steps} this rank's tokens are others than rank 0's")
    engine.clock = partial(float, turn.taken_s)
    return turn.messages


@contextmanager
def shared(settings: Settings, start: Callable[[Group], Engine]) -> Iterator[Engine]:
    """This rank's engine, among the others'. UserError at every rank for what is refused at any."""
    with joined(settings.device, {}) as ranks:
        direct, how = direct_sum(ranks, DTYPES[settings.dtype])
        if ranks.rank == 0:
            script.say(None, how)
        try:
            engine = ranks.together(lambda: start(replace(ranks.group, direct=direct)))
        except SharedError as error:
            raise UserError(str(error)) from None  # a SharedError would end rank 0 before it has told the server
        yield engine


def check(job: Job) -> None:
    """UserError where there are fewer GPUs than ranks."""
    if job.settings.device == "cuda" and job.ranks > torch.cuda.device_count():
        raise UserError(f"--tensor-parallel {job.ranks}: {torch.cuda.device_count()} GPUs are visible; ask for as many")


def _seeded(message: Add | Abort) -> Add | Abort:
    """With a seed, so that all ranks draw the same tokens."""
    if isinstance(message, Abort) or message.params.seed is not None:
        return message
    return msgspec.structs.replace(message, params=replace(message.params, seed=secrets.randbits(63)))


def _checksum(outputs: Sequence[Output]) -> int:
    return zlib.crc32(_ENCODE([(one.request_id, one.tokens, one.finish_reason) for one in outputs]))
