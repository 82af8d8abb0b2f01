"""What a profiling process is asked and what it answers, and the options of every program that profiles."""

from __future__ import annotations

import argparse

import msgspec

from serveproof.bench.job import Job
from serveproof.profile_records import MODES, DecoderPoint, Mode, Profile
from serveproof.results import Ceilings, Record


class ProfileJob(Job, kw_only=True):
    """A Job for serveproof.bench.profiling_worker; `served` names the candidate to profile of each case.

    side: only that one, '' both. traces: the folder for the trace files, '' for none.
    """

    ceilings: Ceilings
    traces: str = ""
    trace_bytes: int = 0


class ProfileReply(Record):
    """case -> side -> its profile."""

    cases: dict[str, dict[str, Profile]]


class CounterJob(Job, kw_only=True):
    """A Job for serveproof.bench.profiling_ncu: one case, one side, under Nsight Compute.

    most_operations: 0, or after how many operations of torch the counting ends (a call of thousands takes hours).
    """

    metrics: list[str]
    most_operations: int = 0
    limit_s: int = 0


class DecoderJob(Job, kw_only=True):
    """A Job for serveproof.bench.profiling_decoder: prefill and decode of the shape in `model` (a config.json)."""

    model: str
    batches: list[int]
    contexts: list[int]
    dtype: str
    ceilings: Ceilings
    traces: str = ""
    trace_bytes: int = 0


class DecoderReply(Record):
    """The model's size and every point of the sweep."""

    parameters: int
    points: list[DecoderPoint]


class RawKernel(Record):
    """One launch as Nsight Compute tells of it."""

    name: str
    metrics: dict[str, float]


class CounterReply(Record):
    """The launches of one call in their order, or why there are none."""

    kernels: list[RawKernel] = msgspec.field(default_factory=list)
    reason: str = ""


class Options(Record):
    """How to profile, from the config: the mode, a trace file's bound, whether to run Nsight Systems too."""

    mode: Mode
    trace_bytes: int
    nsys: bool = False


def add_options(parser: argparse.ArgumentParser, mode: Mode = "minimal") -> None:
    """--profile and what goes with it: the same options everywhere."""
    parser.add_argument(
        "--profile",
        choices=MODES,
        default=mode,
        help="none; minimal: torch's profiler; deep_dive: hardware counters by Nsight Compute as well",
    )
    parser.add_argument("--trace-mb", type=float, default=4.0, help="the largest trace file, compressed")
    parser.add_argument("--nsys", action="store_true", help="a report of Nsight Systems as well, where it is installed")


def options_of(arguments: argparse.Namespace) -> Options:
    return Options(arguments.profile, int(arguments.trace_mb * 1e6), arguments.nsys)
