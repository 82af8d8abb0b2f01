"""How ranks meet: torchrun's rendezvous, one config for all, a GPU for each, a time limit on every collective.

Whatever is wrong on any rank is told to all through the store before a process group exists, so that every rank ends
with the same error, and rank 0 alone says it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from serveproof import script
from serveproof.distributed.heartbeat import BEAT_S, SILENCE_S, Heartbeat
from serveproof.engine.parallel import Group
from serveproof.errors import UserError

T = TypeVar("T")
# a first use may compile for more than a minute on one rank, while the others wait
LIMIT_S = 120.0
PREFIX = "serveproof"
# Not part of what ranks must agree on: where files go, and what names a rank.
OWN = ("log", "out")
# arguments that may be 0; every other number counts something
MAY_BE_NONE = ("seed", "layers")


class SharedError(UserError):
    """A mistake that every rank was told of: rank 0 says it."""


class ChecksFailed(Exception):
    """Something that must hold between ranks does not; the record says what. Raised on every rank."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others. store: torchrun's, seen by all. local, local_world: its place on its node, and
    how many ranks that has."""

    group: Group
    device: torch.device
    backend: str
    local: int
    local_world: int
    config_sha: str
    store: Any
    turns: Iterator[int] = field(default_factory=count)

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def world(self) -> int:
        return self.group.world

    @property
    def nodes(self) -> int:
        """Machines that the ranks are on."""
        return -(-self.world // self.local_world)

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in rank order, at every rank."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """Rank 0's value, at every rank, however long rank 0 takes: heartbeats say whether it lives."""
        key = f"{PREFIX}/first/{next(self.turns)}"
        if self.world > 1 and self.rank == 0:
            self.store.set(key, json.dumps(value))
        elif self.world > 1:
            self.store.wait([key], timedelta(hours=24))
            found: T = json.loads(self.store.get(key))
            return found
        return value

    def together(self, work: Callable[[], T]) -> T:
        """Run on every rank what may be refused on some: then all get the first refusal, none waits for another."""
        problem, made = "", None
        try:
            made = work()
        except UserError as error:
            problem = str(error)
        problems = self.gathered(problem)
        refused = [rank for rank, one in enumerate(problems) if one]
        if refused:
            where = "" if len(refused) == self.world else f"rank {refused[0]}: "
            raise SharedError(where + problems[refused[0]])
        assert made is not None or not problem  # noqa: S101 (told to mypy)
        return made  # type: ignore[return-value]

    def synchronize(self) -> None:
        """Wait for this rank's device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _place() -> tuple[int, int, int]:
    return tuple(int(os.environ.get(name, default)) for name, default in _VARIABLES)  # type: ignore[return-value]


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def sha_of(config: dict[str, Any]) -> str:
    """The hash that ranks compare."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def config_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all ranks must have been told alike."""
    return {name: value for name, value in vars(arguments).items() if name not in OWN}


def disagreement(configs: list[dict[str, Any]]) -> str:
    """'' when all are alike; else which key differs first, with the two values."""
    for rank, config in enumerate(configs):
        for key in sorted(config.keys() | configs[0].keys()):
            ours, theirs = configs[0].get(key), config.get(key)
            if ours != theirs:
                return (
                    f"ranks disagree on the config: {key} is {ours!r} on rank 0 and {theirs!r} on rank {rank}; "
                    f"start every rank with the same arguments"
                )
    return ""


def miscounted(config: dict[str, Any]) -> str:
    """'' unless a script was told to do something less than once; then which argument."""
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        counts = [one for one in numbers if isinstance(one, int) and not isinstance(one, bool)]
        if any(one < (0 if name in MAY_BE_NONE else 1) for one in counts):
            return f"--{name.replace('_', '-')} is {min(counts)}; give {0 if name in MAY_BE_NONE else 1} or more"
    return ""


def _own_problem(device: str, rank: int, local: int) -> str:
    if device != "cuda":
        return ""
    there = torch.cuda.device_count()
    if local >= there:
        return f"rank {rank} has no GPU: {there} visible on its machine; start at most {there} ranks there, or use gloo"
    return ""


def _meet(store: Any, rank: int, world: int, config: dict[str, Any], problem: str, limit_s: float) -> None:
    """Exchange configs and problems through the store; SharedError on every rank alike."""
    told = json.dumps({"config": config, "problem": problem}, sort_keys=True, default=str)
    store.set(f"{PREFIX}/hello/{rank}", told)
    names = [f"{PREFIX}/hello/{peer}" for peer in range(world)]
    try:
        store.wait(names, timedelta(seconds=limit_s))
    except RuntimeError:
        absent = [str(peer) for peer, name in enumerate(names) if not store.check([name])]
        raise SharedError(f"rank {', '.join(absent)} did not come within {limit_s:.0f} s; look at its log") from None
    hellos = [json.loads(store.get(name)) for name in names]
    first = next((hello["problem"] for hello in hellos if hello["problem"]), "")
    wrong = first or disagreement([hello["config"] for hello in hellos])
    if wrong:
        raise SharedError(wrong)


def _lost(own: int, log: Any, peer: int) -> None:
    """End this process: it may be inside a collective that will never end."""
    script.say(log, f"serveproof: rank {own}: rank {peer} gives no sign of life; ending")
    sys.stderr.flush()
    os._exit(1)


def _store(rank: int, limit: timedelta) -> Any:
    """torchrun's store, or one that rank 0 holds where ranks were started without it. It waits for nobody."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return TCPStore(host, port, None, holds, limit, wait_for_workers=False)
    except RuntimeError as error:
        what = "can't be had: something else listens there" if holds else "is not reached: rank 0 is not there"
        raise UserError(f"rank {rank}: {host}:{port} {what}; choose another MASTER_PORT") from error


@contextmanager
def joined(
    device: str,
    config: dict[str, Any],
    log: Any = None,
    limit_s: float = LIMIT_S,
    beat_s: float = BEAT_S,
    silence_s: float = SILENCE_S,
) -> Iterator[Ranks]:
    """This process's place by torchrun's variables, its process group ready; one rank where torchrun did not start it.

    limit_s: of the meeting and of every collective. silence_s: after which a rank counts as dead. NVLink multicast
    stays off unless the user set it.
    """
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    rank, world, local = _place()
    limit = timedelta(seconds=limit_s)
    store: Any = HashStore()
    if world > 1:
        store = _store(rank, limit)
    try:
        _meet(store, rank, world, config, miscounted(config) or _own_problem(device, rank, local), limit_s)
    except SharedError as error:
        _end_together(error, store, rank, world, log)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=PrefixStore(f"{PREFIX}/group", store), rank=rank, world_size=world, timeout=limit
    )
    heart = _heart(rank, world, limit, log, beat_s, silence_s)
    place = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    ranks = Ranks(Group(rank, world), place, "nccl" if device == "cuda" else "gloo", local, here, sha_of(config), store)
    ended = False
    try:
        if heart is not None:
            dist.barrier()
            heart.start()
        yield ranks
        dist.barrier()
        ended = True
    except SharedError as error:
        _end_together(error, store, rank, world, log)
    finally:
        if heart is not None and heart.thread.is_alive():
            heart.stop()
        if ended or world == 1:  # after a failure peers may be gone, and this waits for them
            dist.destroy_process_group()


def _heart(rank: int, world: int, limit: timedelta, log: Any, beat_s: float, silence_s: float) -> Heartbeat | None:
    if world == 1:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = TCPStore(host, port, None, False, limit, wait_for_workers=False)
    heart = Heartbeat(client, rank, world, partial(_lost, rank, log), beat_s, silence_s)
    heart.first()
    return heart


def _end_together(error: SharedError, store: Any, rank: int, world: int, log: Any) -> None:
    """Rank 0 says it; the others wait for that, for torchrun ends a node's ranks as soon as one has failed."""
    said = f"{PREFIX}/said"
    if rank == 0:
        script.say(log, f"serveproof: {error}")
        store.set(said, "1")
        if world > 1:
            # who holds the store must not leave before the others have read it
            names = [f"{PREFIX}/heard/{peer}" for peer in range(1, world)]
            _patiently(lambda: store.wait(names, timedelta(seconds=10)))
    else:
        _patiently(lambda: store.wait([said], timedelta(seconds=10)))
        _patiently(lambda: store.set(f"{PREFIX}/heard/{rank}", "1"))
    raise SystemExit(2)


def _patiently(call: Callable[[], object]) -> None:
    """A goodbye that may come too late: the peer is gone, and all is said."""
    try:
        call()
    except RuntimeError:
        return


def run(work: Callable[[argparse.Namespace, Ranks], None], arguments: argparse.Namespace, device: str) -> None:
    """A script's work on every rank. Exit code 2: bad input; 1: a check failed, or a bug; rank 0 says which."""

    def on_this_rank(given: argparse.Namespace) -> None:
        torch.set_num_threads(max(1, given.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        with joined(device, config_of(given), given.log) as ranks:
            try:
                work(given, ranks)
            except ChecksFailed as failed:
                if ranks.rank == 0:
                    script.say(given.log, f"serveproof: {failed}")
                dist.barrier()
                raise SystemExit(1) from None

    script.run(on_this_rank, arguments)
