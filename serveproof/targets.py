"""Targets such as `ch16:flash_sdp`, and the snakemake command that measures them: one DAG, whoever starts it. No torch.

A target is a pair; `ch16`, the chapter that serveproof's pairs began in, stands for all of them.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serveproof import config, pairs
from serveproof.errors import UserError
from serveproof.hardware.key import visible_gpus
from serveproof.hardware.machines import machines_of

CHAPTER = "ch16"
# the rule of the Snakefile whose input is every figure of the pairs that the config names
RULE = "bench"


def check_chapter(name: str) -> None:
    if name != CHAPTER:
        raise UserError(f"chapter '{name}' doesn't exist; there is {CHAPTER}")


def parse(given: Sequence[str], root: Path = pairs.ROOT) -> list[str]:
    """The pairs that targets name: `ch16`, `ch16:flash_sdp` or `flash_sdp`, several by commas. Sorted, each once."""
    there = pairs.names(root)
    found: set[str] = set()
    for target in filter(None, (word.strip() for text in given for word in text.split(","))):
        chapter, colon, name = target.rpartition(":")
        if colon:
            check_chapter(chapter)
        if target == CHAPTER:
            found.update(there)
        elif name in there:
            found.add(name)
        else:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean '{CHAPTER}:{near[0]}'?" if near else f"there are: {CHAPTER}, {', '.join(there)}"
            raise UserError(f"target '{target}' doesn't exist; {hint}")
    if not found:
        raise UserError(f"no target is named; give {CHAPTER} for all, or some of {', '.join(there)}")
    return sorted(found)


@dataclass(frozen=True)
class Request:
    """What is asked of the DAG beside the config: pairs, and settings that stand over it. None leaves the config's."""

    pairs: Sequence[str]
    profile: str | None = None
    iterations: int | None = None
    configfile: Path | None = None


def command(request: Request, *more: str) -> list[str]:
    """snakemake with this request's settings. iterations: rounds of each measuring process (measure.rounds)."""
    if request.iterations is not None and request.iterations < 2:
        raise UserError(f"--iterations {request.iterations}: at least 2 rounds a process, or there is no interval")
    settings = [f"pairs=[{','.join(request.pairs)}]"]
    if request.profile is not None:
        settings.append(f"profile={{mode: {request.profile}}}")
    if request.iterations is not None:
        settings.append(f"measure={{rounds: {request.iterations}}}")
    file = [] if request.configfile is None else ["--configfile", str(request.configfile)]
    return [sys.executable, "-m", "snakemake", RULE, "--cores", "all", *more, *file, "--config", *settings]


def run(request: Request, *more: str, quiet: bool = False) -> int:
    """Run it; snakemake's exit code. quiet: what its jobs print goes to stderr, for stdout is somebody else's."""
    started = command(request, *more)
    sys.stdout.flush()
    return subprocess.run(started, cwd=pairs.ROOT, stdout=sys.stderr if quiet else None, check=False).returncode


def planned(request: Request) -> list[dict[str, str]]:
    """Each file that the request leads to: {file, rule, status, plan}, by snakemake's own summary. Runs nothing."""
    done = subprocess.run(command(request, "--summary"), cwd=pairs.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [
            line for line in done.stderr.splitlines() if line.startswith("serveproof: ")
        ] or done.stderr.splitlines()
        raise UserError((told or ["snakemake could not plan this"])[-1].removeprefix("serveproof: "))
    head, *rows = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    names = {"output_file": "file", "rule": "rule", "status": "status", "plan": "plan"}
    return [{names[name]: cell for name, cell in zip(head, row, strict=True) if name in names} for row in rows]


def made(name: str, root: Path = pairs.ROOT) -> Path:
    """One of the DAG's own files, made by it where it isn't there yet."""
    file = root / name
    if not file.exists():
        print(f"serveproof: {name} isn't there yet: snakemake makes it", file=sys.stderr)
        command = [sys.executable, "-m", "snakemake", name, "--cores", "all"]
        if subprocess.run(command, cwd=root, stdout=sys.stderr, check=False).returncode:
            raise UserError(f"{name} could not be made, see above")
    return file


def keys(configfile: Path | None = None, root: Path = pairs.ROOT) -> list[str]:
    """The hardware keys that a run with this config measures."""
    settings = config.merged([configfile] if configfile else [], root)
    return list(machines_of(settings["hardware"], 1))


def one_gpu() -> None:
    """From here on this process and what it starts see the first visible GPU alone; on a CPU nothing changes."""
    gpus = visible_gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0].uuid
