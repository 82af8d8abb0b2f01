"""What a measuring process is asked and what it answers, and the options of the scripts that ask."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import msgspec

from serveproof import pairs
from serveproof.results import Record, Status, VerifyCase


class Case(Record):
    """One case as config/workloads.yaml has it."""

    case: str
    tier: str
    axes: dict[str, Any]
    tolerance_eps: float
    optimized_tolerance_eps: float | None = None
    numerics_only: str = ""
    clock: Literal["device", "host"] = "device"

    def tolerance_of(self, side: str) -> float:
        """The bound of one side: the optimized one's own where low precision needs it."""
        own = self.optimized_tolerance_eps if side == "optimized" else None
        return self.tolerance_eps if own is None else own


class Job(Record):
    """What one process is to do. mode `verify` checks both sides; `time` times them; `probe` measures one's memory.

    served: the candidate that serves each case, once the first timing process has chosen. ranks: how many processes
    do it together, one a GPU.
    """

    mode: str
    pair: str
    cases: list[Case]
    device: str
    threads: int
    rounds: int
    warmup_rounds: int
    seed: int
    side: str = ""
    served: dict[str, str] = msgspec.field(default_factory=dict)
    ranks: int = 1
    injected_slowdown_percent: float = 0.0


class CaseReply(Record):
    """What came of one case; `samples` rows are (round, side, order, time_ms), those of `busy` likewise.

    times_ms and refusals: of the optimized side's candidates. observed: medians of what the closures told, by side.
    """

    case: str
    status: Status
    reason: str = ""
    samples: list[tuple[int, str, int, float]] = msgspec.field(default_factory=list)
    busy: list[tuple[int, str, int, float]] = msgspec.field(default_factory=list)
    repeats: int = 1
    discard_reasons: list[str] = msgspec.field(default_factory=list)
    l2_flush_bytes: int = 0
    backends: dict[str, str] = msgspec.field(default_factory=dict)
    plan: str = ""
    work: dict[str, Any] = msgspec.field(default_factory=dict)
    method: str = "host_clock"
    enqueue_ms: dict[str, float] = msgspec.field(default_factory=dict)
    times_ms: dict[str, float] = msgspec.field(default_factory=dict)
    refusals: dict[str, str] = msgspec.field(default_factory=dict)
    observed: dict[str, dict[str, tuple[float, str, str]]] = msgspec.field(default_factory=dict)
    verified: VerifyCase | None = None
    peak_memory_bytes: int = 0
    metrics: dict[str, tuple[float, str, str]] = msgspec.field(default_factory=dict)


class Reply(Record):
    """A process's answer, one CaseReply per case."""

    cases: list[CaseReply]


def gpus_of(pair: str) -> int | None:
    """How many GPUs a pair's job leases: one, or every visible one (None)."""
    return None if pairs.uses_every_gpu(pair) else 1


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
