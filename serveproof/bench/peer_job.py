"""What a peer of engine_benchmark is asked to run, and how it answers: in a process of its own, whatever goes wrong.

python -m serveproof.bench.peer_X JOB.json REPLY.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from serveproof.results import Record
from serveproof.serving_results import PeerLoad


class PeerJob(Record):
    """The engine's load. model: a directory or a config.json for random weights; for llama.cpp a GGUF."""

    model: str
    device: str
    dtype: str
    threads: int
    prompts: list[list[int]]
    outputs: list[int]


def answer(name: str, version: str, run: Callable[[PeerJob], PeerLoad]) -> None:
    """Run the job that the first argument names; a failure is a PeerLoad with its reason."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=PeerJob)
    try:
        reply = run(job)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        reply = PeerLoad(name, version, 0, None, None, f"{type(error).__name__}: {first}")
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(reply))
