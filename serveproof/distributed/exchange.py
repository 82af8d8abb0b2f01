"""Bytes from one rank into another's memory: put, get and signal, over symmetric memory or as messages.

Symmetric memory is one-sided: a rank copies into, or out of, memory that it has mapped of its peer, and a signal word
says that it is there. Messages (gloo, NCCL) need both sides, so every call here is made by both: the one that moves
and the one that is moved to. No multicast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from serveproof.distributed.direct import peers_reach_each_other
from serveproof.distributed.group import Ranks

LIMIT_MS = 60_000
PUT, TAKEN = 0, 1


class Exchange(Protocol):
    """Slots of `slot_bytes` that every rank has, and ways to reach a peer's. `name` says over what."""

    name: str
    own: Tensor

    def put(self, peer: int, slots: list[int], data: Tensor) -> None:
        """Write rows [n, slot_bytes] into a peer's slots; `landed` there tells when they have come."""

    def landed(self, peer: int, slots: list[int]) -> None:
        """Wait for what a peer puts into these own slots."""

    def get(self, peer: int, slots: list[int]) -> Tensor:
        """Read a peer's slots; the peer calls `given` with the same."""

    def given(self, peer: int, slots: list[int]) -> None:
        """The other side of `get`."""


@dataclass
class Messages:
    """Sends and receives of torch.distributed; what was put goes with the next `landed`.

    Both at once: over NCCL a send may wait for its peer's receive, and two ranks that put first would wait for good.
    """

    own: Tensor
    name: str
    waiting: list[dist.P2POp] = field(default_factory=list)

    def put(self, peer: int, slots: list[int], data: Tensor) -> None:
        if slots:
            self.waiting.append(dist.P2POp(dist.isend, data.contiguous(), peer))

    def landed(self, peer: int, slots: list[int]) -> None:
        came = torch.empty((len(slots), self.own.shape[1]), dtype=torch.uint8, device=self.own.device)
        moves = [*self.waiting, *([dist.P2POp(dist.irecv, came, peer)] if slots else [])]
        for work in dist.batch_isend_irecv(moves) if moves else []:
            work.wait()
        self.waiting.clear()
        self.own[slots] = came

    def get(self, peer: int, slots: list[int]) -> Tensor:
        came = torch.empty((len(slots), self.own.shape[1]), dtype=torch.uint8, device=self.own.device)
        dist.recv(came, peer)
        return came

    def given(self, peer: int, slots: list[int]) -> None:
        dist.send(self.own[slots].contiguous(), peer)


@dataclass
class Symmetric:
    """Slots in memory that every GPU of the node has mapped. The host waits for nothing: signals are on the stream."""

    own: Tensor
    handle: Any
    rank: int
    offset: int
    name: str = "symmetric memory"

    def _of(self, peer: int) -> Tensor:
        shape = tuple(self.own.shape)
        found: Tensor = self.handle.get_buffer(peer, shape, torch.uint8, self.offset)
        return found

    def put(self, peer: int, slots: list[int], data: Tensor) -> None:
        if slots:
            self._of(peer)[slots] = data
        self.handle.put_signal(dst_rank=peer, channel=PUT, timeout_ms=LIMIT_MS)

    def landed(self, peer: int, slots: list[int]) -> None:  # noqa: ARG002 (the signal stands for them)
        self.handle.wait_signal(src_rank=peer, channel=PUT, timeout_ms=LIMIT_MS)

    def get(self, peer: int, slots: list[int]) -> Tensor:
        self.handle.wait_signal(src_rank=peer, channel=TAKEN, timeout_ms=LIMIT_MS)
        return self._of(peer)[slots]

    def given(self, peer: int, slots: list[int]) -> None:  # noqa: ARG002
        self.handle.put_signal(dst_rank=peer, channel=TAKEN, timeout_ms=LIMIT_MS)


def make(ranks: Ranks, slots: int, slot_bytes: int) -> tuple[Exchange, str]:
    """(the exchange, why it is not symmetric memory, or ''). A collective."""
    missing = peers_reach_each_other(ranks)
    if missing:
        own = torch.zeros((slots, slot_bytes), dtype=torch.uint8, device=ranks.device)
        return Messages(own, ranks.backend), missing
    from serveproof.ops import peer_memory

    flat, addresses, handle = peer_memory.allocate(slots * slot_bytes, torch.uint8, ranks.device)
    offset = addresses[ranks.rank] - handle.buffer_ptrs[ranks.rank]
    return Symmetric(flat.view(slots, slot_bytes), handle, ranks.rank, offset), ""
