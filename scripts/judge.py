"""Rule judge: holds every measured pair, load test and run of several ranks against
expectations_{hardware}.json, every precision against the gate.

Needs measure.json of each pair, perplexity.json and the records of load tests and of several ranks. Writes
results.Judgement; a regression is a verdict there, not an error of this script (compare.py turns verdicts into an exit
code).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import expectations, load_judging, script
from serveproof.distributed_records import RankedRecord
from serveproof.load_records import LoadRecord
from serveproof.results import Judgement, MeasureRecord, PerplexityRecord, read, write


def work(arguments: argparse.Namespace) -> None:
    known = expectations.load(arguments.expectations) if arguments.expectations else None
    records = [read(path, MeasureRecord) for path in arguments.measured]
    verdicts = expectations.judge_pairs(records, known, arguments.key)
    verdicts += expectations.judge_ranks([read(path, RankedRecord) for path in arguments.ranked], known)
    if arguments.perplexity:
        accuracy = read(arguments.perplexity, PerplexityRecord)
        verdicts += expectations.judge_accuracy(accuracy, arguments.max_increase_percent)
    serving = [read(path, LoadRecord) for path in arguments.serving]
    verdicts += load_judging.judge(serving, known)
    name = arguments.expectations.name if known else ""
    write(arguments.out, Judgement(arguments.key, name, arguments.max_increase_percent, verdicts))


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--key", required=True, help="the hardware key that the results are of")
    parser.add_argument("--expectations", type=Path, nargs="?", help="without it every figure is `absent`")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="measure.json of each pair")
    parser.add_argument("--ranked", type=Path, nargs="*", default=[], help="records of several ranks")
    parser.add_argument("--perplexity", type=Path)
    parser.add_argument("--serving", type=Path, nargs="*", default=[], help="the records of load tests")
    parser.add_argument("--max-increase-percent", type=float, default=2.0, help="the accuracy gate, against bf16")
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
