"""A sign of life from every rank, so that one that dies is noticed by the others within seconds.

A collective over NCCL waits for a peer that is gone until its time limit; torchrun ends the ranks of its own node only.
So each rank counts in a store that all see, and watches the others' counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

BEAT_S, SILENCE_S = 0.5, 10.0
DONE = "done"


class Heartbeat:
    """Counts for `rank` in the store and calls lost(rank that fell silent) once, from a thread of its own.

    store: a client that nobody else waits on. What is counted is looks without a change, not time: a rank that was
    itself kept from running doesn't take the others for dead.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        lost: Callable[[int], None],
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.store, self.rank, self.lost, self.beat_s = store, rank, lost, beat_s
        self.most_looks = max(2, round(silence_s / beat_s))
        self.peers = [peer for peer in range(world) if peer != rank]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Every rank must have called `first` before any starts: a look waits for what was never written."""
        self.thread.start()

    def first(self) -> None:
        """The first sign of life."""
        self.store.set(_key(self.rank), "0")

    def stop(self) -> None:
        """Say that this rank has ended well, and watch no more."""
        self.stopping.set()
        self.thread.join()
        self.store.set(_key(self.rank), DONE)

    def _beat(self) -> None:
        seen: dict[int, bytes] = {}
        looks = dict.fromkeys(self.peers, 0)
        count = 0
        while not self.stopping.wait(self.beat_s):
            count += 1
            try:
                self.store.set(_key(self.rank), str(count))
                for peer in self.peers:
                    found = self.store.get(_key(peer))
                    alive = found != seen.get(peer) or found == DONE.encode()
                    looks[peer] = 0 if alive else looks[peer] + 1
                    seen[peer] = found
            except Exception:  # whatever the store raises, it is gone: with it the rank or agent that held it
                silent = min(self.peers)
            else:
                silent = next((peer for peer in self.peers if looks[peer] >= self.most_looks), -1)
            if silent >= 0 and not self.stopping.is_set():
                self.lost(silent)
                return


def _key(rank: int) -> str:
    return f"serveproof/beat/{rank}"
