"""What a measuring process is asked and what it answers, and the options of the scripts that ask."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from serveproof.results import Record, Status


class Case(Record):
    """One case as config/workloads.yaml has it."""

    case: str
    tier: str
    axes: dict[str, Any]
    tolerance_eps: float


class Job(Record):
    """What one process is to do. mode `time` times both sides; `probe` measures one side's memory."""

    mode: str
    pair: str
    cases: list[Case]
    device: str
    threads: int
    rounds: int
    warmup_rounds: int
    seed: int
    side: str = ""


class CaseReply(Record):
    """What came of one case; `samples` rows are (round, side, order, time_ms)."""

    case: str
    status: Status
    reason: str = ""
    samples: list[tuple[int, str, int, float]] = msgspec.field(default_factory=list)
    repeats: int = 1
    discard_reasons: list[str] = msgspec.field(default_factory=list)
    l2_flush_bytes: int = 0
    backends: dict[str, str] = msgspec.field(default_factory=dict)
    plan: str = ""
    peak_memory_bytes: int = 0
    metrics: dict[str, tuple[float, str, str]] = msgspec.field(default_factory=dict)


class Reply(Record):
    """A process's answer, one CaseReply per case."""

    cases: list[CaseReply]


def decode_cases(text: str) -> list[Case]:
    """The JSON list of cases that a rule passes to its script."""
    return msgspec.json.decode(text, type=list[Case])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that runs a pair's cases."""
    parser.add_argument("--key", required=True, help="the hardware key that the run is for")
    parser.add_argument("--pair", required=True, help="X of kernels/baseline_X.py and kernels/optimized_X.py")
    parser.add_argument(
        "--cases", type=decode_cases, required=True, help="JSON list of {case, tier, axes, tolerance_eps}"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
