"""A lease on the machine's CPU or on GPUs: timed and heavy jobs hold it, so that they never overlap.

The lock is flock(2) on a file in the temporary folder: the kernel drops it when the holder dies, however it dies.
Take the lease before the first CUDA call: a leased GPU becomes the only one the process sees.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serveproof.errors import UserError
from serveproof.hardware.key import visible_gpus


def _lock_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"serveproof-{os.getuid()}-{name}.lock"


def _try_lock(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _take(device: str, choices: list[str], started: float, poll_s: float, limit_s: float) -> tuple[str, int]:
    """(name, handle) of the first of `choices` that is free; waits while others hold them all, saying so once."""
    said = False
    while True:
        for name in choices:
            handle = _try_lock(_lock_file(name))
            if handle is not None:
                return name, handle
        if time.monotonic() - started > limit_s:
            raise UserError(f"device {device}: still leased by another serveproof job after {limit_s:.0f} s")
        if not said:
            print(f"serveproof: waiting for {device}: another serveproof job holds it", file=sys.stderr, flush=True)
            said = True
        time.sleep(poll_s)


@contextmanager
def lease(device: str, *, gpus: int | None = 1, poll_s: float = 0.2, limit_s: float = 3600.0) -> Iterator[list[str]]:
    """Hold the CPU ('cpu'), or on 'cuda' a GPU that is free, several, or (None) every visible one; yields the names of
    the locks.

    UserError when there is no such device, or not so many, or after limit_s of waiting.
    """
    names = ["cpu"] if device == "cpu" else [gpu.uuid for gpu in visible_gpus()]
    if not names:
        raise UserError("device cuda: no NVIDIA GPU is visible here; set `hardware: cpu` in config/config.yaml")
    if device != "cpu" and (gpus or 0) > len(names):
        raise UserError(f"device cuda: {gpus} GPUs are asked for, {len(names)} visible here; ask for fewer")
    # Several are taken one after another in one order for all, so that two jobs never wait for each other.
    steps = [names] if gpus == 1 else [[name] for name in sorted(names)[:gpus]]
    started = time.monotonic()
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    held: list[tuple[str, int]] = []
    try:
        for choices in steps:
            held.append(_take(device, choices, started, poll_s, limit_s))
        if device != "cpu":
            taken = {name for name, _ in held}
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(name for name in names if name in taken)
        yield [name for name, _ in held]
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        elif device != "cpu":
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        for _, handle in held:
            os.close(handle)
