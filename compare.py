#!/usr/bin/env python3
"""Holds results/{hardware} against expectations_{hardware}.json: a table, and an exit code a nightly job can use.

exit code 0: every figure met (or skipped, with its reason); 1: something regressed, failed, or is too good to
believe; 2: bad input; 3: nothing regressed, but something could not be judged (absent, expired, inconclusive).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from serveproof import accuracy_gates, config, expectations, load_judging, pairs
from serveproof.accuracy_records import PerplexityRecord
from serveproof.distributed_records import RankedRecord
from serveproof.errors import UserError
from serveproof.hardware import key
from serveproof.load_records import LoadRecord
from serveproof.results import Judgement, MeasureRecord, Verdict, encode, read, write_atomically
from serveproof.serving_results import EngineRecord, LadderRecord

ROOT = Path(__file__).resolve().parent
SIGNS = {"met": "✓", "regressed": "✗", "failed": "✗", "too_good": "!", "skipped": "-"}


def table(verdicts: list[Verdict]) -> str:
    """One line a verdict."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    rows = [
        (
            f"{SIGNS.get(v.verdict, '?')} {v.verdict}",
            v.subject,
            v.metric,
            number(v.value),
            f"{number(v.low)} .. {number(v.high)}" if v.low is not None else "",
            f"{number(v.lower)} .. {number(v.upper)}" if v.upper is not None else "",
            v.unit,
            v.source,
            # a traceback's first line says nothing: its last one does
            (v.reason.strip().splitlines() or [""])[-1],
        )
        for v in verdicts
    ]
    heads = ("verdict", "subject", "metric", "value", "interval", "expected", "unit", "source", "reason")
    return tabulate(rows, headers=heads, disable_numparse=True)


def gate_of(judged: Path) -> tuple[float, dict[str, float]]:
    """The accuracy gate and its bounds by name that the last run was judged by; before any judging, config.yaml's."""
    if judged.exists():
        judgement = read(judged, Judgement)
        return judgement.max_increase_percent, judgement.gate_bounds
    gate = config.read(ROOT)["accuracy_gate"]
    return float(gate["max_increase_percent"]), gate.get("bounds", {})


def compare(arguments: argparse.Namespace) -> int:
    hardware = arguments.hardware or key.detect()
    folder = ROOT / "results" / hardware
    records = [read(path, MeasureRecord) for path in sorted(folder.glob("pairs/*/measure.json"))]
    records = [record for record in records if record.pair in pairs.names()]
    ranked = [read(path, RankedRecord) for path in sorted(folder.glob("ranks/*.json"))]
    if not records and not ranked:
        raise UserError(f"results/{hardware}: nothing measured here yet; run `snakemake --cores all`")
    file = ROOT / f"expectations_{hardware}.json"
    known = expectations.load(file) if file.exists() else None
    tested = [read(path, LoadRecord) for path in sorted(folder.glob("serving/*/*.json"))]
    if arguments.update_expectations:
        known = load_judging.updated(expectations.updated(known, hardware, records, ranked), tested)
        write_atomically(file, lambda path: path.write_bytes(encode(known)))
        print(f"{file.name}: rewritten from the cases that passed")
        for line in [*expectations.too_wide(hardware, records), *load_judging.too_wide(tested)]:
            print(line)
    verdicts = expectations.judge_pairs(records, known, hardware) + load_judging.judge(tested, known)
    verdicts += expectations.judge_ranks(ranked, known)
    perplexity = folder / "perplexity.json"
    if perplexity.exists():
        limits = gate_of(folder / "judgement.json")
        accuracy = accuracy_gates.judge_accuracy(read(perplexity, PerplexityRecord), *limits)
        ladders = [read(path, LadderRecord) for path in sorted(folder.glob("engine/ladder*.json"))]
        loads = [read(path, EngineRecord) for path in sorted(folder.glob("engine/load*.json"))]
        verdicts = accuracy_gates.gated(verdicts, accuracy) + accuracy
        verdicts += accuracy_gates.judge_engine(ladders, loads, accuracy)
    print(table(verdicts))
    return expectations.exit_code(verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", help="the hardware key whose results to compare; this machine's by default")
    parser.add_argument(
        "--update-expectations",
        action="store_true",
        help="rewrite expectations_{hardware}.json from the results that passed; what did not pass keeps its entry",
    )
    try:
        sys.exit(compare(parser.parse_args()))
    except UserError as error:
        print(f"serveproof: {error}", file=sys.stderr)
        sys.exit(expectations.EXIT_USAGE)


if __name__ == "__main__":
    main()
