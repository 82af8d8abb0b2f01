"""Ranks without torchrun, each forked from a server that has imported torch once: what a start costs is what it tests.

torchrun's own part (rendezvous, ending a node's ranks) is tested where scripts/start_ranks.py starts them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from serveproof.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
Begun = list[tuple[multiprocessing.process.BaseProcess, Path]]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "serveproof.distributed.equality"])


def _rank(script: str, arguments: list[str], place: dict[str, str], said: Path) -> None:
    """The process: torchrun's variables, its own command line, what it says in a file."""
    os.chdir(ROOT)
    os.environ.update(place)
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def start(script: str, arguments: Sequence[Sequence[object]], folder: Path, world: int = 0, port: int = 0) -> Begun:
    """A rank for each command line in `arguments`, over loopback; what each says goes into a file of `folder`.

    world: more than those, where some never come; port: one that is not free.
    """
    world = world or len(arguments)
    shared = {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port or free_port(),
    }
    begun = []
    for rank, own in enumerate(arguments):
        place = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        said = folder / f"rank{rank}.txt"
        process = CONTEXT.Process(target=_rank, args=(script, [*map(str, own)], place, said), daemon=True)
        process.start()
        begun.append((process, said))
    return begun


def ended(begun: Begun, limit_s: float = 90) -> list[tuple[int, str]]:
    """(exit code, output) of each rank; one that hangs is an error."""
    try:
        for process, said in begun:
            process.join(limit_s)
            assert process.exitcode is not None, f"hangs: {said.read_text()}"
        return [(process.exitcode or 0, said.read_text()) for process, said in begun]
    finally:
        for process, _ in begun:
            process.kill()


def run(script: str, arguments: Sequence[Sequence[object]], folder: Path) -> list[tuple[int, str]]:
    """A rank for each command line, to its end."""
    return ended(start(script, arguments, folder))
