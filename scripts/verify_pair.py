"""Rule verify_pair: both sides of a pair against its reference, and the four corruptions that must be rejected.

Needs the machine that --key names. Writes results.VerifyRecord. A pair that fails is a status in the record, not an
error of this script: it must not stop the others.
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

from serveproof import pairs, script
from serveproof.bench.job import Case, add_options
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.results import SideCheck, VerifyCase, VerifyRecord, write


def verify(pair: pairs.Pair, case: Case, device: str, seed: int) -> VerifyCase:
    """One case, both sides; a refusal is skipped, an exception is an error with its traceback."""
    from serveproof.bench import inputs, verification

    def outcome(baseline: SideCheck, optimized: SideCheck) -> VerifyCase:
        sides = {"baseline": baseline, "optimized": optimized}
        worst = next((side for side in sides.values() if side.status != "passed"), optimized)
        reason = "; ".join(f"{name}: {side.reason}" for name, side in sides.items() if side.reason)
        return VerifyCase(case.case, case.tier, case.axes, worst.status, reason, baseline, optimized)

    refusal = pair.optimized.requires(device)
    if refusal is not None:
        skipped = SideCheck(status="skipped", reason=refusal)
        return VerifyCase(case.case, case.tier, case.axes, "skipped", refusal, skipped, skipped)
    try:
        refill = inputs.Refill(pair, case.axes, device, seed)
        runs = verification.build_sides(pair, refill)
        checks = [
            verification.verify_side(runs[side], refill, pair, case.tolerance_eps) for side in ("baseline", "optimized")
        ]
        return outcome(*checks)
    except NotImplementedError as error:
        skipped = SideCheck(status="skipped", reason=str(error))
        return VerifyCase(case.case, case.tier, case.axes, "skipped", str(error), skipped, skipped)
    except Exception:
        broken = SideCheck(status="error", reason=traceback.format_exc())
        return VerifyCase(case.case, case.tier, case.axes, "error", broken.reason, broken, broken)


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    device = device_of(arguments.key)
    with lease(device):
        import torch  # after the lease, which chooses the GPU

        torch.set_num_threads(arguments.threads)
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
