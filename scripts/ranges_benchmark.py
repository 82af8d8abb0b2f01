"""What a name for a phase costs (serveproof/nvtx_ranges.py), off and on: part of `make bench`.

Best of several times many calls, each in a process of its own, for SERVEPROOF_RANGES is read once. Beside them the same
function called as it is: off, `ranged` must cost no more.

Needs nothing but this checkout. Prints a table. Writes no file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import timeit

from tabulate import tabulate

from serveproof import nvtx_ranges, script
from serveproof.pairs import ROOT

REPEATS = 5


def nothing() -> None:
    """What is named."""


def in_span() -> None:
    """A block of nothing in a range."""
    with nvtx_ranges.span("schedule"):
        pass


def costs_ns(calls: int) -> dict[str, float]:
    """ns a call in this process, the best of REPEATS."""
    ways = {
        "a function": nothing,
        "the same through `ranged`": nvtx_ranges.ranged("mlp", nothing),
        "`with span(...)` in a function": in_span,
    }
    return {name: 1e9 * min(timeit.repeat(way, number=calls, repeat=REPEATS)) / calls for name, way in ways.items()}


def work(arguments: argparse.Namespace) -> None:
    if arguments.here:
        print(json.dumps(costs_ns(arguments.here)))
        return
    found = {}
    for name, value, calls in (("off", "", arguments.calls), ("on", "1", max(arguments.calls // 50, 1))):
        done = subprocess.run(
            [sys.executable, __file__, "--here", str(calls)], cwd=ROOT, check=True, capture_output=True, text=True,
            env={**os.environ, "SERVEPROOF_RANGES": value, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        found[name] = json.loads(done.stdout.splitlines()[-1])
    rows = [(way, found["off"][way], found["on"][way]) for way in found["off"]]
    print(tabulate(rows, headers=("ns a call", "off", "on"), floatfmt=".0f"))


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--calls", type=int, default=1_000_000, help="when off; a fiftieth of them when on")
    parser.add_argument("--here", type=int, default=0, help=argparse.SUPPRESS)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
