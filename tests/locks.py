"""Waiting for a file's lock: between workers of one run, and between test runs on one machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, shared: bool = False) -> Iterator[None]:
    """Hold flock(2) on a file that is made where it is absent; the kernel drops it when the holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
