"""Prints how often this machine's measurements would call a slowdown of 2, 5, 10 and 20 % one, and no slowdown one.

Needs the samples of a run (results/{hardware}/pairs/{pair}/samples.parquet). Writes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from tabulate import tabulate

from serveproof import script
from serveproof.bench import detection
from serveproof.errors import UserError
from serveproof.hardware.key import device_of

VERDICTS = ("regressed", "inconclusive", "met", "too_good", "absent")


def work(arguments: argparse.Namespace) -> None:
    if not arguments.samples:
        raise UserError("no samples given; run `make report` first, then `make bench`")
    rows = []
    for path in script.progress(arguments.samples, "simulate"):
        if not path.exists():
            raise UserError(f"{path}: no such file; run `make report` first")
        hardware, pair = path.parts[-4], path.parts[-2]
        samples = pl.read_parquet(path)
        for case in samples["case"].unique(maintain_order=True):
            device = device_of(hardware)
            for metric, recorded in detection.recorded_of(samples, case, device).items():
                for slowdown, counts in detection.rates(recorded, metric, device, arguments.runs).items():
                    shares = [f"{100 * counts[name] / arguments.runs:.1f}" for name in VERDICTS]
                    rows.append((hardware, f"{pair}/{case}", metric, f"{100 * slowdown:.0f} %", *shares))
    heads = ("hardware", "case", "figure", "slowdown", *(f"{name} %" for name in VERDICTS))
    print(tabulate(rows, headers=heads, disable_numparse=True, colalign=("left", "left", "left", *["right"] * 6)))


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="samples.parquet of one or more pairs")
    parser.add_argument("--runs", type=int, default=200, help="simulated runs a slowdown")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
