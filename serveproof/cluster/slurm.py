"""What a SLURM cluster says of itself: partitions, nodes, accounts and jobs, asked with its own commands."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field

from serveproof.cluster.parse import fields_of, minutes_of
from serveproof.errors import UserError

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
TIMEOUT_S = 30
# a node in one of these runs nothing until someone mends it
OUT = ("DOWN", "DRAIN", "FAIL", "NOT_RESPONDING", "POWERED_DOWN", "UNKNOWN", "MAINT")


@dataclass(frozen=True)
class Node:
    """One node. gpus: model -> how many; a model that SLURM isn't told is ''."""

    name: str
    cpus: int
    memory_mb: int
    gpus: dict[str, int]
    partitions: list[str]
    usable: bool


@dataclass(frozen=True)
class Partition:
    """One partition. limit_minutes: the longest job, None without a limit."""

    name: str
    up: bool
    default: bool
    limit_minutes: int | None


@dataclass(frozen=True)
class Cluster:
    """What `make slurm-check` knows of a cluster. accounts: those of this user; enforced: whether a job needs one."""

    partitions: dict[str, Partition]
    nodes: list[Node]
    accounting: bool
    enforced: bool
    min_job_age_s: int
    accounts: list[str] = field(default_factory=list)
    default_account: str = ""


def ask(*command: str) -> str:
    """A command's output; one that is absent, fails or hangs is a UserError with its first line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not on the PATH; run on a submit node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)}: no answer in {TIMEOUT_S} s; is the cluster up?") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"{' '.join(command)}: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout


def gpus_of(gres: str) -> dict[str, int]:
    """`gpu:h200:4(S:0-1),gpu:2` as {'h200': 4, '': 2}."""
    counts: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, _, rest = part.partition(":")
        if kind != "gpu":
            continue
        model, _, number = rest.rpartition(":")
        if not number.isdecimal():
            model, number = rest, "1"
        counts[model] = counts.get(model, 0) + int(number)
    return counts


def node_of(told: dict[str, str]) -> Node:
    """One line of `scontrol show node -o`."""
    state = told.get("State", "")
    return Node(
        name=told.get("NodeName", ""),
        cpus=int(told.get("CPUTot") or 0),
        memory_mb=int(told.get("RealMemory") or 0),
        gpus=gpus_of(told.get("Gres", "")),
        partitions=told.get("Partitions", "").split(","),
        usable=not any(word in state for word in OUT),
    )


def partition_of(told: dict[str, str]) -> Partition:
    """One line of `scontrol show partition -o`."""
    limit = minutes_of(told.get("MaxTime", ""))
    return Partition(told["PartitionName"], told.get("State") == "UP", told.get("Default") == "YES", limit)


def _lines(*command: str) -> list[dict[str, str]]:
    return [fields_of(line) for line in ask(*command).splitlines() if "=" in line]


def look() -> Cluster:
    """Ask the cluster at hand. UserError where a command is missing or the controller doesn't answer."""
    for command in COMMANDS:
        if shutil.which(command) is None:
            raise UserError(f"{command}: not on the PATH; run on a submit node of the cluster")
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", ask("scontrol", "show", "config"), re.M))
    accounting = settings.get("AccountingStorageType", "").rpartition("/")[2] not in ("none", "(null)", "")
    accounts, default = _accounts() if accounting else ([], "")
    age = re.match(r"\d+", settings.get("MinJobAge", ""))
    return Cluster(
        partitions={one["PartitionName"]: partition_of(one) for one in _lines("scontrol", "show", "partition", "-o")},
        nodes=[node_of(one) for one in _lines("scontrol", "show", "node", "-o")],
        accounting=accounting,
        enforced="associations" in settings.get("AccountingStorageEnforce", ""),
        min_job_age_s=int(age[0]) if age else 0,
        accounts=accounts,
        default_account=default,
    )


def _accounts() -> tuple[list[str], str]:
    """(accounts of this user, the default one)."""
    user = getpass.getuser()
    told = ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account")
    default = ask("sacctmgr", "-n", "-P", "show", "user", user, "format=defaultaccount")
    return sorted({line.strip() for line in told.splitlines() if line.strip()}), default.strip()


def jobs_left_behind(folder: str) -> list[str]:
    """The ids of this user's jobs that Snakemake submitted from `folder`: with no run there, a killed one left them."""
    told = ask("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%Z|%k")
    jobs = [line.split("|", 2) for line in told.splitlines() if line.count("|") >= 2]
    return [number for number, where, comment in jobs if where == folder and re.match(r"(rule|group)_", comment)]


def clear_jobs_left_behind(folder: str, limit_s: float = 120.0) -> list[str]:
    """Cancel what a killed run left in the queue and wait until it is gone: two jobs must not write one result.

    Call it under the run lock: then no living run is in `folder`. UserError when they don't end within limit_s.
    """
    found = jobs_left_behind(folder)
    if not found:
        return []
    ask("scancel", *found)
    until = time.monotonic() + limit_s
    while jobs_left_behind(folder):
        if time.monotonic() > until:
            raise UserError(f"SLURM jobs {', '.join(found)}: of a killed run, not gone {limit_s:.0f} s after scancel")
        time.sleep(0.5)
    return found
