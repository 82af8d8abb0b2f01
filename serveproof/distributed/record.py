"""The one record that a script of several ranks writes, and how it ends: what failed is said, and the exit code 1."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from serveproof import script
from serveproof.distributed.group import ChecksFailed, Ranks, config_of
from serveproof.distributed_records import RankedCase, RankedRecord
from serveproof.hardware.key import device_of
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import write
from serveproof.sources import closure, sha_of


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every script of several ranks."""
    made = script.parser(description)
    made.add_argument("--key", default="cpu", help="hardware key that the results are of: cpu, h200, 2x_h200, ...")
    made.add_argument("--device", choices=("cpu", "cuda"), help="cpu: gloo; by default what the key stands for")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a node's ranks together")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--judged-later",
        action="store_true",
        help="exit code 0 although a check failed: the record has it, for rule judge",
    )
    made.add_argument("--out", type=Path, help="write the record here, as JSON")
    return made


def device(arguments: argparse.Namespace) -> str:
    """What the ranks compute on."""
    return arguments.device or device_of(arguments.key)


def machine_of(where: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def finish(
    name: str, arguments: argparse.Namespace, ranks: Ranks, cases: Iterable[RankedCase], **points: Any
) -> RankedRecord:
    """Write the record from rank 0, say each case there; ChecksFailed on every rank when one did not pass."""
    code = closure(f"scripts/{name}.py", ROOT)
    record = RankedRecord(
        script=name,
        hardware=arguments.key,
        machine=machine_of(ranks.device),
        device=ranks.device.type,
        world=ranks.world,
        nodes=ranks.nodes,
        backend=ranks.backend,
        code_sha=sha_of(ROOT / file for file in code),
        config=config_of(arguments),
        config_sha=ranks.config_sha,
        cases=list(cases),
        provenance=collect(ROOT),
        **points,
    )
    if ranks.rank == 0:
        for case in record.cases:
            told = "".join(
                f"; {title} {one.estimate.value:.4g} {one.estimate.unit}" for title, one in case.figures.items()
            )
            script.say(arguments.log, f"{case.status}: {case.case}: {case.reason}{told}")
        if arguments.out:
            write(arguments.out, record)
    failed = [case.case for case in record.cases if case.status not in ("passed", "skipped")]
    if failed and not arguments.judged_later:
        raise ChecksFailed(f"{len(failed)} of {len(record.cases)} checks failed: {', '.join(failed)}")
    return record
