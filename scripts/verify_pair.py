"""Rule verify_pair: both sides of a pair against its reference, and the four corruptions that must be rejected.

Needs the machine that --key names. Writes results.VerifyRecord. A pair that fails is a status in the record, not an
error of this script: it must not stop the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from serveproof import pairs, script
from serveproof.bench import verification
from serveproof.bench.inputs import Refill
from serveproof.bench.job import Case, add_options
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.results import SIDES, SideCheck, VerifyCase, VerifyRecord, write


def check_side(pair: pairs.Pair, side: str, refill: Refill, case: Case) -> SideCheck:
    """One side; an exception is its status, with the reason."""
    try:
        run = verification.build_side(pair, side, refill)
        return verification.verify_side(run, refill, pair, case.tolerance_eps)
    except Exception as error:
        status, reason = verification.outcome_of(error)
        return SideCheck(status=status, reason=reason)


def verify(pair: pairs.Pair, case: Case, device: str, seed: int) -> VerifyCase:
    """One case, both sides; the case has the status of the first side that did not pass."""
    refusal = pair.optimized.requires(device)
    sides: dict[str, SideCheck]
    if refusal is not None:
        sides = dict.fromkeys(SIDES, SideCheck(status="skipped", reason=refusal))
    else:
        try:
            refill = Refill(pair, case.axes, device, seed)
            sides = {side: check_side(pair, side, refill, case) for side in SIDES}
        except Exception as error:
            status, reason = verification.outcome_of(error)
            sides = dict.fromkeys(SIDES, SideCheck(status=status, reason=reason))
    statuses = [side.status for side in sides.values()]
    worst = next((found for found in statuses if found != "passed"), statuses[0])
    reasons = [f"{name}: {side.reason}" for name, side in sides.items() if side.reason]
    return VerifyCase(case.case, case.tier, case.axes, worst, refusal or "; ".join(reasons), **sides)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    device = device_of(arguments.key)
    with lease(device):
        start_torch(device, arguments.threads)
        pair = pairs.load(arguments.pair)
        cases = []
        for case in script.progress(arguments.cases, f"verify {pair.name}"):
            cases.append(verify(pair, case, device, arguments.seed))
            if device == "cuda":
                torch.cuda.empty_cache()
    write(arguments.out, VerifyRecord(pair.name, arguments.key, pair.code_sha, cases))


def main() -> None:
    parser = script.parser(__doc__ or "")
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
