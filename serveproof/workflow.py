"""What the Snakefile needs beside its settings: the jobs' environment, one run at a time, a setting's files."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from serveproof.errors import UserError


def job_environment(root: Path) -> None:
    """Jobs run the Python that runs Snakemake, and import serveproof from this checkout.

    Under --sdm conda the environment's own Python stands before it on PATH. The report names the command that made it.
    """
    os.environ.setdefault("SERVEPROOF_COMMAND", shlex.join(["snakemake", *sys.argv[1:]]))
    for name, first in (("PATH", str(Path(sys.executable).parent)), ("PYTHONPATH", str(root))):
        os.environ[name] = os.pathsep.join(filter(None, (first, os.environ.get(name))))


def source_files(setting: str) -> list[str]:
    """The files behind a `default`-or-path setting: a changed file of the user's reruns what reads it."""
    if setting == "default":
        return []
    path = Path(setting)
    return sorted(str(file) for file in path.iterdir() if file.is_file()) if path.is_dir() else [str(path)]


def start_again() -> NoReturn:
    """Become the same command anew, with nothing planned."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command


def hold_run_lock(folder: Path) -> int:
    """Take the folder's lock for the life of this process; returns its file handle. UserError while another has it.

    The kernel drops the lock when the run dies, however it dies; Snakemake's own lock would refuse the next run.
    """
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / "serveproof.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError("another run is going on in this folder; wait for it, or stop it, then start again") from None
    return handle
