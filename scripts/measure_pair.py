"""Rule measure_pair: times both sides of a pair in turns, in several processes, alone on the device.

Needs the machine that --key names, its hardware.json (ceilings) and the pair's verify.json: what did not verify is
not timed. Writes results.MeasureRecord and the samples as Parquet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import pairs, script
from serveproof.bench import measure
from serveproof.bench.job import Case, Job, add_options
from serveproof.cluster.usage import placement
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.provenance import collect
from serveproof.results import (
    HardwareRecord,
    MeasureCase,
    MeasureRecord,
    VerifyCase,
    VerifyRecord,
    read,
    write,
    write_atomically,
)


def untimed(case: Case, verified: VerifyCase) -> MeasureCase | None:
    """The record of a case that is not timed, with its reason; None for one that is to be."""
    status, reason = verified.status, verified.reason
    if status == "passed":
        if not case.numerics_only:
            return None
        status, reason = "skipped", f"verified, not timed: {case.numerics_only}"
    return MeasureCase(case.case, case.tier, case.axes, status, reason)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    machine = read(arguments.hardware, HardwareRecord)
    verified = {case.case: case for case in read(arguments.verified, VerifyRecord).cases}
    device = device_of(arguments.key)
    records = {case.case: untimed(case, verified[case.case]) for case in arguments.cases}
    good = [case for case in arguments.cases if records[case.case] is None]
    samples = measure.samples_frame([])
    if good:
        bar = script.progress(range(arguments.processes + 2), f"measure {arguments.pair}")

        def say(message: str) -> None:
            bar.update()
            script.say(arguments.log, f"{arguments.pair} {message}")

        ranks = pairs.uses_every_gpu(arguments.pair)
        # The host's clock counts launches, which a job on another GPU would slow.
        alone = ranks or any(case.clock == "host" for case in good)
        with lease(device, gpus=None if alone else 1) as held, bar:
            job = Job(
                mode="time",
                pair=arguments.pair,
                cases=good,
                device=device,
                threads=arguments.threads,
                rounds=arguments.rounds,
                warmup_rounds=arguments.warmup_rounds,
                seed=arguments.seed,
                ranks=len(held) if ranks else 1,
                injected_slowdown_percent=arguments.injected_slowdown_percent,
            )
            timed, samples = measure.measure(job, arguments.processes, machine.ceilings, say)
        records |= {record.case: record for record in timed}
    write_atomically(arguments.out_samples, samples.write_parquet)
    write(
        arguments.out,
        MeasureRecord(
            pair=arguments.pair,
            hardware=arguments.key,
            machine=machine.name,
            code_sha=pairs.code_sha(arguments.pair),
            summary=pairs.summary(arguments.pair),
            cases=[record for case in arguments.cases if (record := records[case.case]) is not None],
            provenance=collect(pairs.ROOT),
            placement=placement(),
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
    parser.add_argument(
        "--injected-slowdown-percent", type=float, default=0.0, help="slow the optimized side on purpose, and say so"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-samples", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
