"""A lease on the machine's CPU or on one GPU: timed and heavy jobs hold it, so that they never overlap.

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


@contextmanager
def lease(device: str, *, poll_s: float = 0.2, limit_s: float = 3600.0) -> Iterator[str]:
    """Hold the CPU ('cpu') or one free GPU ('cuda'); yields the lock's name.

    Waits while others hold it, saying so once on stderr. UserError when there is no such device, or after limit_s.
    """
    if device == "cpu":
        names = ["cpu"]
    else:
        names = [gpu.uuid for gpu in visible_gpus()]
        if not names:
            raise UserError("device cuda: no NVIDIA GPU is visible here; set `hardware: cpu` in config/config.yaml")
    started, said = time.monotonic(), False
    while True:
        for name in names:
            handle = _try_lock(_lock_file(name))
            if handle is None:
                continue
            before = os.environ.get("CUDA_VISIBLE_DEVICES")
            try:
                if device != "cpu":
                    os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield name
            finally:
                if before is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = before
                elif device != "cpu":
                    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                os.close(handle)
            return
        if time.monotonic() - started > limit_s:
            raise UserError(f"device {device}: still leased by another serveproof job after {limit_s:.0f} s")
        if not said:
            print(f"serveproof: waiting for {device}: another serveproof job holds it", file=sys.stderr, flush=True)
            said = True
        time.sleep(poll_s)
