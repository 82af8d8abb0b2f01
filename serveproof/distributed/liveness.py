"""Whether ranks notice that one has died: children of the ranks form a group of their own, and one of them is killed.

python -m serveproof.distributed.liveness DEVICE: the child. It joins as a rank and makes collectives until it ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from serveproof.distributed.group import Ranks, joined
from serveproof.distributed.heartbeat import SILENCE_S
from serveproof.distributed_records import RankedCase, RankedFigure
from serveproof.ports import free_port
from serveproof.results import Estimate

# where no connection breaks the heartbeat alone tells, as the scripts have it
START_S, LIMIT_S = 50.0, SILENCE_S + 5.0
READY = b"ready\n"


def child(device: str) -> None:
    """One all-reduce after another, until a peer's death ends this process."""
    with joined(device, {}, limit_s=START_S) as ranks:
        x = torch.ones(1024, device=ranks.device)
        dist.all_reduce(x)
        ranks.synchronize()
        os.write(1, READY)
        while True:
            dist.all_reduce(x.fill_(1.0))
            ranks.synchronize()


def _start(ranks: Ranks, port: int) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    environment = {**kept, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "serveproof.distributed.liveness", ranks.device.type],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _is_ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None  # noqa: S101 (told to mypy)
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    return bool(readable) and os.read(process.stdout.fileno(), len(READY)) == READY


def _seconds_to_end(process: subprocess.Popen[bytes], limit_s: float) -> float | None:
    started = time.monotonic()
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - started


def noticed(ranks: Ranks, limit_s: float = LIMIT_S) -> RankedCase:
    """The last rank's child is killed; every other's must have ended within limit_s."""
    axes = {"ranks": ranks.world, "limit_s": limit_s}
    if ranks.world == 1:
        return RankedCase("dead_rank_is_noticed", axes, "skipped", "one rank has no others to notice it")
    port = ranks.gathered(free_port() if ranks.rank == 0 else 0)[0]
    process = _start(ranks, port)
    try:
        started = ranks.gathered(_is_ready(process))
        if not all(started):
            late = [rank for rank, one in enumerate(started) if not one]
            return RankedCase("dead_rank_is_noticed", axes, "error", f"ranks {late}: no group of children was formed")
        victim = ranks.rank == ranks.world - 1
        if victim:
            process.kill()
        seconds = _seconds_to_end(process, limit_s)
        clean = not victim and process.returncode == 0
        found = ranks.gathered((seconds, clean))
    finally:
        process.kill()
        process.wait()
    slowest = [one for one, _ in found[:-1] if one is not None]
    if len(slowest) < ranks.world - 1 or any(ended_well for _, ended_well in found):
        reason = f"a killed rank was not noticed within {limit_s:g} s by every other: {found[:-1]}"
        return RankedCase("dead_rank_is_noticed", axes, "failed", reason)
    took = max(slowest)
    figure = RankedFigure(Estimate(took, took, took, "s"), higher_is_better=False)
    reason = f"after {took:.2f} s the last of the others had ended"
    return RankedCase("dead_rank_is_noticed", axes, "passed", reason, {"seconds": figure})


if __name__ == "__main__":
    child(sys.argv[1])
