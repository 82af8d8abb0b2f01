"""Rule profile_pair: where the time of both sides of a pair goes, in processes that time nothing for a verdict.

Needs the machine that --key names, its hardware.json (ceilings) and the pair's measure.json: what was not measured is
not profiled, and of candidates the one that served is. Writes profile_records.ProfileRecord, the traces beside it, and
with --out-raw every launch's hardware counters as Nsight Compute told them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from serveproof import pairs, script
from serveproof.bench import profiling
from serveproof.bench.job import Case, Job, gpus_of
from serveproof.bench.job import add_options as add_pair_options
from serveproof.bench.profiling_job import add_options, options_of
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.profile_records import Profile, ProfileCase, ProfileRecord
from serveproof.provenance import collect
from serveproof.results import HardwareRecord, MeasureCase, MeasureRecord, read, write, write_atomically


def unprofiled(case: Case, measured: MeasureCase | None) -> ProfileCase | None:
    """The record of a case that was measured and did not pass, with its reason; None for one that is to be profiled."""
    if measured is None or measured.status == "passed":
        return None
    both = Profile(status=measured.status, reason=measured.reason)
    return ProfileCase(case.case, case.tier, measured.dtype, both, both)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    started = time.monotonic()
    ceilings = read(arguments.hardware, HardwareRecord).ceilings
    record = read(arguments.measured, MeasureRecord)
    measured = {case.case: case for case in record.cases}
    cases = {case.case: unprofiled(case, measured.get(case.case)) for case in arguments.cases}
    good = [case for case in arguments.cases if cases[case.case] is None]
    options = options_of(arguments)
    notes: list[str] = []
    raw: dict[str, object] = {}
    device = device_of(arguments.key)
    if good and options.mode != "none":
        with lease(device, gpus=gpus_of(arguments.pair)) as held:
            job = Job(
                mode="profile",
                pair=arguments.pair,
                cases=good,
                device=device,
                threads=arguments.threads,
                rounds=1,
                warmup_rounds=1,
                seed=arguments.seed,
                served=served(measured),
                ranks=len(held),
            )
            found, notes, raw = profiling.profile_pair(job, ceilings, options, arguments.out_traces)  # type: ignore[assignment]
        cases |= {one.case: one for one in found}
    arguments.out_traces.mkdir(parents=True, exist_ok=True)
    if arguments.out_raw:
        write_atomically(arguments.out_raw, lambda path: path.write_bytes(msgspec.json.encode(raw)))
    write(
        arguments.out,
        ProfileRecord(
            pair=arguments.pair,
            hardware=arguments.key,
            mode=options.mode,
            code_sha=pairs.code_sha(arguments.pair),
            cases=[one for case in arguments.cases if (one := cases[case.case]) is not None],
            notes=notes,
            seconds=time.monotonic() - started,
            measure_seconds=next((case.timing.seconds for case in record.cases if case.timing), None),
            provenance=collect(pairs.ROOT),
        ),
    )


def served(measured: dict[str, MeasureCase]) -> dict[str, str]:
    """case -> the candidate that served most of its measuring processes."""
    found = {}
    for name, case in measured.items():
        ran = [one for one in case.optimized.candidates if one.served] if case.optimized else []
        if ran:
            found[name] = max(ran, key=lambda one: one.served).name
    return found


def main() -> None:
    parser = script.parser(__doc__ or "")
    add_pair_options(parser)
    add_options(parser)
    parser.add_argument("--hardware", type=Path, required=True, help="hardware.json of this machine")
    parser.add_argument("--measured", type=Path, required=True, help="the pair's measure.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-traces", type=Path, required=True, help="a folder")
    parser.add_argument("--out-raw", type=Path, help="every launch's counters as JSON, for tests of the parser")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
