"""Rule verify_pair: both sides of a pair against its reference, and the four corruptions that must be rejected.

Needs the machine that --key names. Writes results.VerifyRecord. A pair that fails is a status in the record, not an
error of this script: it must not stop the others.
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from serveproof import pairs, script
from serveproof.bench.job import Case, add_options
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.results import SIDES, SideCheck, VerifyCase, VerifyRecord, write

if TYPE_CHECKING:
    from serveproof.bench.inputs import Refill


def check_side(pair: pairs.Pair, side: str, refill: Refill, case: Case) -> SideCheck:
    """One side; a refusal is skipped, an exception is an error with its traceback."""
    from serveproof.bench import verification

    try:
        run = verification.build_side(pair, side, refill)
        return verification.verify_side(run, refill, pair, case.tolerance_eps)
    except NotImplementedError as refusal:
        return SideCheck(status="skipped", reason=str(refusal) or "the back end refuses without a reason")
    except Exception:
        return SideCheck(status="error", reason=traceback.format_exc())


def verify(pair: pairs.Pair, case: Case, device: str, seed: int) -> VerifyCase:
    """One case, both sides; the case has the status of the first side that did not pass."""
    from serveproof.bench import inputs

    refusal = pair.optimized.requires(device)
    sides: dict[str, SideCheck]
    if refusal is not None:
        sides = dict.fromkeys(SIDES, SideCheck(status="skipped", reason=refusal))
    else:
        try:
            refill = inputs.Refill(pair, case.axes, device, seed)
            sides = {side: check_side(pair, side, refill, case) for side in SIDES}
        except Exception:
            sides = dict.fromkeys(SIDES, SideCheck(status="error", reason=traceback.format_exc()))
    statuses = [side.status for side in sides.values()]
    status = next((found for found in statuses if found != "passed"), statuses[0])
    reasons = [f"{name}: {side.reason}" for name, side in sides.items() if side.reason]
    return VerifyCase(case.case, case.tier, case.axes, status, refusal or "; ".join(reasons), **sides)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    device = device_of(arguments.key)
    with lease(device):
        import torch  # after the lease, which chooses the GPU

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
