"""Where a figure comes from: commit, lock file, versions, driver, command, date."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from serveproof.hardware.key import driver_version
from serveproof.results import Provenance

# What can change a figure, and what else makes the report, as far as it is installed.
MEASURING = ("torch", "torchao", "triton", "flashinfer-python", "transformer-engine", "numpy")
PACKAGES = (
    *MEASURING, "cupti-python", "nsight-python", "nvtx", "transformers", "tokenizers", "safetensors", "gguf",
    "mwparserfromhell", "scipy", "polars", "snakemake", "jinja2", "altair", "vl-convert-python", "msgspec",
)  # fmt: skip


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions, Python's first; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> str:
    """What of the environment can change a figure, as one line: versions and driver.

    A parameter of every measuring rule: after an upgrade the figures are measured again.
    """
    found = versions(MEASURING) | {"driver": driver_version()}
    return " ".join(f"{name}={version}" for name, version in found.items())


def _follows(lock: Path) -> bool:
    """Whether every installed package of PACKAGES that the lock names has the lock's version."""
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(), re.M))
    return all(version.split("+")[0] == locked.get(name, version) for name, version in versions().items())


def collect(root: Path) -> Provenance:
    """The provenance of a figure made now, in the checkout at `root`; its command is Snakemake's where that runs it.

    An environment that doesn't follow the lock says so: lock_file then ends in ' (not followed)'. Where the tree is a
    copy without its .git, whoever made the copy says which commit it is, in SERVEPROOF_COMMIT.
    """
    head = _git(root, "rev-parse", "HEAD")
    commit = head or os.environ.get("SERVEPROOF_COMMIT")
    driver = driver_version()
    lock = root / "envs" / ("gpu.txt" if driver else "cpu.txt")
    name = str(lock.relative_to(root))
    return Provenance(
        commit=commit or "unknown (not a git checkout)",
        dirty=bool(head and _git(root, "status", "--porcelain")),
        lock_file=name if _follows(lock) else f"{name} (not followed)",
        lock_sha256=hashlib.sha256(lock.read_bytes()).hexdigest(),
        versions=versions(),
        driver=driver,
        command=os.environ.get("SERVEPROOF_COMMAND") or shlex.join(["python", *sys.argv]),
        date_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
