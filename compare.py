#!/usr/bin/env python3
"""Holds results/{hardware} against expectations_{hardware}.json: a table, and an exit code a nightly job can use.

With --profile or --iterations the DAG first runs with that setting, for the targets alone where some are named. With
--against, two runs are compared instead. Needs results of `snakemake`. Writes nothing but expectations where
--update-expectations asks for it, and the run that the DAG made into results/history.

exit code 0: every figure met (or skipped, with its reason); 1: something regressed, failed, or is too good to
believe, or a job failed; 2: bad input; 3: nothing regressed, but something could not be judged (absent, expired,
inconclusive).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serveproof import comparison, expectations, targets
from serveproof.errors import UserError
from serveproof.hardware import key
from serveproof.pairs import ROOT
from serveproof.profile_records import MODES


def compare(arguments: argparse.Namespace) -> int:
    """Run what is to be run, judge what is there, print; the exit code."""
    chosen = targets.parse(arguments.targets) if arguments.targets else None
    if arguments.against or arguments.run:
        return two_runs(arguments)
    if arguments.profile is not None or arguments.iterations is not None:
        request = targets.Request(
            chosen or targets.parse([targets.CHAPTER]), arguments.profile, arguments.iterations, arguments.configfile
        )
        if targets.run(request):
            print("serveproof: a job failed, see above; nothing is compared", file=sys.stderr)
            return expectations.EXIT_REGRESSED
        from serveproof import history  # polars: only where it is needed

        for measured in targets.keys(arguments.configfile):
            history.note(ROOT / "results" / measured)
    hardware = arguments.hardware or key.detect()
    folder = ROOT / "results" / hardware
    found = comparison.find(folder, chosen)
    if arguments.update_expectations:
        print(*comparison.update(hardware, found), sep="\n")
    gate = comparison.gate_of(folder / "judgement.json")
    verdicts = comparison.judge(hardware, found, comparison.known(hardware), gate, chosen)
    print(comparison.table(verdicts))
    return expectations.exit_code(verdicts)


def two_runs(arguments: argparse.Namespace) -> int:
    """Compare this run, or --run, with --against."""
    from serveproof import history, run_comparison  # polars: only where it is needed

    asked = ("profile", "iterations", "targets", "update_expectations")
    mixed = [name.replace("_", "-") for name in asked if getattr(arguments, name)]
    if mixed:
        raise UserError(f"--{mixed[0]}: --against compares two runs that are there; give one of the two")
    if not arguments.against:
        raise UserError("--run: goes with --against; say what to compare it with")
    hardware = arguments.hardware or key.detect()
    folder = ROOT / "results" / hardware
    old = history.named(arguments.against, hardware)
    new = history.named(arguments.run, hardware) if arguments.run else history.of_folder(folder)
    gate_percent = comparison.gate_of(folder / "judgement.json").percent
    changes = run_comparison.compare(old, new, gate_percent)
    print(run_comparison.table(changes))
    return run_comparison.exit_code(changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", help="the hardware key whose results to compare; this machine's by default")
    parser.add_argument(
        "--targets", nargs="+", metavar="TARGET", help="these alone: ch16 for all pairs, ch16:flash_sdp, flash_sdp"
    )
    parser.add_argument("--profile", choices=MODES, help="run the DAG first, with profile.mode set to this")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="run the DAG first, with measure.rounds set to this"
    )
    parser.add_argument("--configfile", type=Path, help="of that run, over config/config.yaml; e.g. config/smoke.yaml")
    parser.add_argument(
        "--update-expectations",
        action="store_true",
        help="rewrite expectations_{hardware}.json from the results that passed; what did not pass keeps its entry",
    )
    parser.add_argument(
        "--against",
        metavar="COMMIT|FILE",
        help="compare with this run: a commit of results/history, a run's .parquet, a judgement.json, a results folder",
    )
    parser.add_argument("--run", metavar="COMMIT|FILE", help="the run to compare; what lies in results by default")
    try:
        sys.exit(compare(parser.parse_args()))
    except UserError as error:
        print(f"serveproof: {error}", file=sys.stderr)
        sys.exit(expectations.EXIT_USAGE)


if __name__ == "__main__":
    main()
