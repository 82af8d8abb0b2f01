"""Profiles every pair, or those named, without the DAG: one command on a machine that is lent for an hour.

Needs the machine alone: it waits for its lease. Writes {out}/{pair}.json (profile_records.ProfileRecord), its traces,
and {out}/{pair}_raw.json: every launch's hardware counters as Nsight Compute told them. A pair that breaks is said and
stops no other; past --limit-s no new one starts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from serveproof import pairs, script
from serveproof.bench.profiling_job import add_options, options_of
from serveproof.bench.profiling_kernel import cases_of, profile, summary
from serveproof.errors import UserError
from serveproof.hardware import key
from serveproof.results import SIDES, write, write_atomically


def work(arguments: argparse.Namespace) -> None:
    hardware = "cpu" if arguments.cpu else key.detect()
    out = arguments.out or pairs.ROOT / "results" / hardware / "profiles"
    started = time.monotonic()
    for pair in arguments.pairs or pairs.names():
        if time.monotonic() - started > arguments.limit_s:
            print(f"{pair}: not profiled: {arguments.limit_s:.0f} s are over", flush=True)
            continue
        cases = [
            case
            for case in cases_of(pair, key.device_of(hardware))
            if not arguments.cases or case.case in arguments.cases
        ]
        if not cases:
            print(f"{pair}: no case for {hardware}{' of those named' if arguments.cases else ''}", flush=True)
            continue
        try:
            record, raw = profile(
                pair, cases, "", hardware, options_of(arguments), arguments.threads, out / f"{pair}_traces"
            )
        except UserError as error:
            print(f"{pair}: {error}", flush=True)
            continue
        write(out / f"{pair}.json", record)
        content = msgspec.json.encode(raw)
        write_atomically(out / f"{pair}_raw.json", lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
        print(f"{pair}: {record.seconds:.1f} s", *record.notes, sep="\n  ", flush=True)
        for case in record.cases:
            for side in SIDES:
                print(f"  {case.case} {side}:", *summary(getattr(case, side)), sep="\n    ", flush=True)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--pairs", nargs="+", help="all of kernels/ by default")
    parser.add_argument("--cases", nargs="+", help="all of the hardware's tiers by default")
    add_options(parser)
    parser.add_argument("--cpu", action="store_true", help="on the CPU, although there is a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=1e9, help="start no pair after so many seconds")
    parser.add_argument("--out", type=Path, help="a folder; results/{hardware}/profiles by default")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
