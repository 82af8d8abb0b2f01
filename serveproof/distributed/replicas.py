"""A copy of every rank's KV cache at the next rank, brought up to date after every step of its engine.

Were a rank lost, its requests could go on from the copy. After each step the pages that it wrote are put into the
holder's memory, a signal says so, and owner and holder compare the checksum of every page.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from serveproof.distributed import exchange
from serveproof.distributed.group import Ranks
from serveproof.distributed.pages import Written, block_bytes, bytes_of, checksums
from serveproof.engine.engine import Engine
from serveproof.engine.model_runner import ModelRunner

WARM_STEPS = 5


@dataclass
class StepCheck:
    """Of one step at one rank: pages put, seconds of the put, when all had met (ns), pages whose sums differ."""

    pages: int
    put_s: float
    met_ns: int
    wrong: list[int]


@dataclass
class Replicas:
    """One rank's place in the ring: it puts its pages to `holder` and holds those of `owner`."""

    ranks: Ranks
    engine: Engine
    runner: ModelRunner
    written: Written
    slots: exchange.Exchange
    missing: str
    steps: list[StepCheck] = field(default_factory=list)

    @property
    def holder(self) -> int:
        return (self.ranks.rank + 1) % self.ranks.world

    @property
    def owner(self) -> int:
        return (self.ranks.rank - 1) % self.ranks.world

    def step(self) -> None:
        """One step of the engine, if it has one; then its pages to the holder, and every page compared."""
        if self.engine.busy:
            self.engine.step()
        mine = self.written.taken()
        theirs = self.ranks.gathered(mine)[self.owner]
        self.ranks.synchronize()
        started = time.perf_counter()
        self.slots.put(self.holder, mine, bytes_of(self.runner.cache, mine))
        self.slots.landed(self.owner, theirs)
        self.ranks.synchronize()
        took = time.perf_counter() - started
        met = self._met_ns()
        self.steps.append(StepCheck(len(mine), took, met, self.differing()))

    def _met_ns(self) -> int:
        """When this rank knew that every page is in place everywhere; the host's clock, one for a machine's ranks."""
        if isinstance(self.slots, exchange.Symmetric):
            self.slots.handle.barrier(channel=2, timeout_ms=exchange.LIMIT_MS)
            torch.cuda.synchronize()
        else:
            dist.barrier()
        return time.monotonic_ns()

    def sums(self) -> torch.Tensor:
        """int64 [2, blocks]: of the own cache, and of the copy held."""
        every = list(range(self.runner.cache.blocks))
        return torch.stack((checksums(bytes_of(self.runner.cache, every)), checksums(self.slots.own)))

    def differing(self) -> list[int]:
        """The pages of the copy held here whose sums are not their owner's; block 0, padding's, is nobody's."""
        found = self.ranks.gathered(self.sums().cpu())
        own, held = found[self.owner][0], found[self.ranks.rank][1]
        return [page for page in (own != held).nonzero().flatten().tolist() if page]

    def corrupt(self, page: int) -> None:
        """Flip one bit of the copy held."""
        at = self.slots.own.shape[1] // 2
        self.slots.own[page, at] ^= 1
        self.ranks.synchronize()

    def put_again(self, pages: list[int]) -> None:
        """The mend: these pages once more from every owner to its holder."""
        self.slots.put(self.holder, pages, bytes_of(self.runner.cache, pages))
        self.slots.landed(self.owner, pages)
        self.ranks.synchronize()
        dist.barrier()

    def got_back(self, pages: list[int]) -> bool:
        """Whether this rank's pages, read back out of its holder's memory, are its own bytes: what a restart needs.

        Over messages one rank after another reads, so that nobody sends while his peer sends.
        """
        dist.barrier()
        equal = True
        for reader in range(self.ranks.world):
            if reader == self.owner:
                self.slots.given(self.owner, pages)
            if reader == self.ranks.rank:
                found = self.slots.get(self.holder, pages)
                equal = torch.equal(found, bytes_of(self.runner.cache, pages))
            self.ranks.synchronize()
            dist.barrier()
        return equal


def made(ranks: Ranks, engine: Engine) -> Replicas:
    """Room for a copy of the previous rank's cache, zeros like a new cache. A collective."""
    runner = engine.runner
    assert isinstance(runner, ModelRunner)  # noqa: S101 (told to mypy)
    slots, missing = exchange.make(ranks, runner.cache.blocks, block_bytes(runner.cache))
    written = Written(runner, runner.cache.page_size)
    engine.runner = written
    return Replicas(ranks, engine, runner, written, slots, missing)


def skews_us(met_ns: list[list[int]]) -> list[float]:
    """us between the first and the last rank to know that a step is in place, a number a step, warm-up left out."""
    return [1e-3 * (max(times) - min(times)) for times in list(zip(*met_ns, strict=True))[WARM_STEPS:]]
