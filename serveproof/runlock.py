"""One run at a time in one folder: a lock that the kernel drops when the run dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from serveproof.errors import UserError


def hold_run_lock(folder: Path) -> int:
    """Take the folder's lock for the life of this process; returns its file handle. UserError while another has it."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / "serveproof.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError("another run is going on in this folder; wait for it, or stop it, then start again") from None
    return handle
