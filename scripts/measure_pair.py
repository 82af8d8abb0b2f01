"""Rule measure_pair: times both sides of a pair in turns, in several processes, alone on the device.

Needs the machine that --key names, its hardware.json (ceilings) and the pair's verify.json: what did not verify is
not timed. Writes results.MeasureRecord and the samples as Parquet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import pairs, script
from serveproof.bench import measure
from serveproof.bench.job import Job, add_options
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.provenance import collect
from serveproof.results import HardwareRecord, MeasureCase, MeasureRecord, VerifyRecord, read, write, write_atomically


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    machine = read(arguments.hardware, HardwareRecord)
    verified = {case.case: case for case in read(arguments.verified, VerifyRecord).cases}
    pair = pairs.load(arguments.pair)
    good = [case for case in arguments.cases if verified[case.case].status == "passed"]
    records = {
        case.case: MeasureCase(case.case, case.tier, case.axes, verified[case.case].status, verified[case.case].reason)
        for case in arguments.cases
    }
    device = device_of(arguments.key)
    job = Job(
        mode="time",
        pair=pair.name,
        cases=good,
        device=device,
        threads=arguments.threads,
        rounds=arguments.rounds,
        warmup_rounds=arguments.warmup_rounds,
        seed=arguments.seed,
    )
    samples = measure.samples_frame([])
    if good:
        bar = script.progress(range(arguments.processes + 2), f"measure {pair.name}")
        with lease(device), bar:
            timed, samples = measure.measure(job, arguments.processes, machine.ceilings, bar.update)
        records |= {record.case: record for record in timed}
    write_atomically(arguments.out_samples, samples.write_parquet)
    write(
        arguments.out,
        MeasureRecord(
            pair=pair.name,
            hardware=arguments.key,
            machine=machine.name,
            code_sha=pair.code_sha,
            summary=pair.summary,
            cases=[records[case.case] for case in arguments.cases],
            provenance=collect(pairs.ROOT),
        ),
    )


def main() -> None:
    parser = script.parser(__doc__ or "")
    add_options(parser)
    parser.add_argument("--hardware", type=Path, required=True, help="hardware.json of this machine")
    parser.add_argument("--verified", type=Path, required=True, help="the pair's verify.json")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup-rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-samples", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
