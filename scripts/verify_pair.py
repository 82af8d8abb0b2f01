"""Rule verify_pair: both sides of a pair against its reference, and the four corruptions that must be rejected.

Needs the machine that --key names. Writes results.VerifyRecord. A pair that fails is a status in the record, not an
error of this script: it must not stop the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import pairs, script
from serveproof.bench.job import Case, CaseReply, Job, add_options, gpus_of
from serveproof.bench.processes import run_process
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.results import SideCheck, VerifyCase, VerifyRecord, write


def record_of(case: Case, reply: CaseReply) -> VerifyCase:
    """What came of one case; where nothing was checked both sides have the reply's status."""
    if reply.verified is not None:
        return reply.verified
    check = SideCheck(status=reply.status, reason=reply.reason)
    return VerifyCase(case.case, case.tier, case.axes, reply.status, reply.reason, baseline=check, optimized=check)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    device = device_of(arguments.key)
    with lease(device, gpus=gpus_of(arguments.pair)) as held:
        job = Job(
            mode="verify",
            pair=arguments.pair,
            cases=arguments.cases,
            device=device,
            threads=arguments.threads,
            rounds=0,
            warmup_rounds=0,
            seed=arguments.seed,
            ranks=len(held),
        )
        replies = run_process(job)
    cases = [record_of(case, reply) for case, reply in zip(arguments.cases, replies, strict=True)]
    write(arguments.out, VerifyRecord(arguments.pair, arguments.key, pairs.code_sha(arguments.pair), cases))


def main() -> None:
    parser = script.parser(__doc__ or "")
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
