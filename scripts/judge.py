"""Rule judge: holds every measured pair, load test and run of several ranks against
expectations_{hardware}.json, every precision and way of serving against the accuracy gate.

Needs measure.json of each pair, perplexity.json, the ladder's record and those of load tests and of several ranks. What
uses a precision that costs more than its bound has regressed, however fast (serveproof/accuracy_gates.py). Writes
results.Judgement; a regression is a verdict there, not an error of this script (compare.py turns verdicts into an exit
code).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import comparison, expectations, script
from serveproof.accuracy_records import PerplexityRecord
from serveproof.comparison import Found, Gate
from serveproof.distributed_records import RankedRecord
from serveproof.load_records import LoadRecord
from serveproof.results import Judgement, MeasureRecord, read, write
from serveproof.serving_results import LadderRecord


def work(arguments: argparse.Namespace) -> None:
    known = expectations.load(arguments.expectations) if arguments.expectations else None
    gate = Gate(arguments.max_increase_percent, dict(arguments.bounds))
    found = Found(
        measured=[read(path, MeasureRecord) for path in arguments.measured],
        ranked=[read(path, RankedRecord) for path in arguments.ranked],
        tested=[read(path, LoadRecord) for path in arguments.serving],
        perplexity=read(arguments.perplexity, PerplexityRecord) if arguments.perplexity else None,
        ladders=[read(path, LadderRecord) for path in arguments.ladder],
    )
    verdicts = comparison.judge(arguments.key, found, known, gate)
    name = arguments.expectations.name if known else ""
    write(arguments.out, Judgement(arguments.key, name, gate.percent, verdicts, gate.bounds))


def bound(text: str) -> tuple[str, float]:
    """NAME=PERCENT."""
    name, _, percent = text.partition("=")
    return name, float(percent)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--key", required=True, help="the hardware key that the results are of")
    parser.add_argument("--expectations", type=Path, nargs="?", help="without it every figure is `absent`")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="measure.json of each pair")
    parser.add_argument("--ranked", type=Path, nargs="*", default=[], help="records of several ranks")
    parser.add_argument("--perplexity", type=Path)
    parser.add_argument("--ladder", type=Path, nargs="*", default=[], help="the ladder's record, for the gates")
    parser.add_argument("--serving", type=Path, nargs="*", default=[], help="the records of load tests")
    parser.add_argument("--max-increase-percent", type=float, default=2.0, help="the accuracy gate, against bf16")
    parser.add_argument(
        "--bounds", type=bound, nargs="*", default=[], metavar="NAME=PERCENT", help="gates of their own"
    )
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
