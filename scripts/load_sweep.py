"""Rule load_sweep: what a server can carry at most, and the highest rate at which it holds its SLO.

First a closed loop that keeps the server full gives its capacity. Then open-loop runs at shares of it, each judged by
MLPerf's early-stopping rule, and bisection between the highest that holds and the lowest that does not.

Needs a model (a directory, a config.json or a shape such as llama-1b), or a server that runs (--base-url). Writes
load_records.SweepRecord.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from serveproof import script
from serveproof.load_records import RatePoint, SweepRecord
from serveproof.load_test import options
from serveproof.load_test.early_stopping import Rule, queries_needed
from serveproof.load_test.session import capacity
from serveproof.load_test.sweep import rate_point, sweep
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import write


def work(arguments: argparse.Namespace) -> None:
    rule = Rule(arguments.percentile, arguments.confidence)
    with options.opened(arguments) as setting:
        found, tokens = capacity(setting.target, setting.workload, arguments.concurrency, arguments.duration)
        script.say(arguments.log, f"capacity: {found:.2f} requests/s, {tokens:.1f} output tokens/s")
        least = queries_needed(0, rule)
        script.say(arguments.log, f"proving p{100 * rule.percentile:g} takes {least} requests a rate at the least")
        highest, points = sweep(
            lambda rate, number: rate_point(setting.target, setting.workload, rate, arguments.duration, rule, number),
            found,
            arguments.loads,
            arguments.refinements,
            lambda point: script.say(arguments.log, line(point)),
        )
        record = SweepRecord(
            hardware=arguments.key,
            machine=setting.machine,
            server=setting.server,
            server_command=setting.command,
            model=setting.workload.model,
            slo=setting.target.slo,
            percentile=rule.percentile,
            confidence=rule.confidence,
            capacity_per_s=found,
            capacity_tokens_per_s=tokens,
            concurrency=arguments.concurrency,
            highest_rate_per_s=highest,
            points=points,
            gpus=setting.gpus,
            axes=setting.axes(arguments.duration),
            provenance=collect(ROOT),
        )
    if arguments.out:
        write(arguments.out, record)
    rows = [
        [
            f"{one.rate_per_s:.2f}", one.within, one.beyond, verdict(one), f"{one.run.good_per_s:.2f}",
            f"{one.run.output_tokens_per_s:.1f}",
            f"{one.run.tokens_per_s_per_user:.1f}" if one.run.tokens_per_s_per_user else "-",
        ]
        for one in points
    ]  # fmt: skip
    print(tabulate(rows, ["rate/s", "within", "beyond", "SLO", "good/s", "tokens/s", "tokens/s a user"]))
    most = max(one.run.completed_per_s for one in points)
    if most > 1.2 * found:
        script.say(
            arguments.log,
            f"the open loop completed {most:.2f} requests/s, {arguments.concurrency} at once only {found:.2f}: "
            "that is no capacity; raise --concurrency or --duration",
        )
    print(f"highest rate that holds the SLO: {f'{highest:.2f} requests/s' if highest else 'none was proven'}")


def verdict(point: RatePoint) -> str:
    """The point's verdict in words."""
    return {True: "holds", False: "does not hold", None: "not proven"}[point.proven]


def line(point: RatePoint) -> str:
    """One line a point."""
    return f"{point.rate_per_s:.2f} requests/s: {verdict(point)}{f' ({point.reason})' if point.reason else ''}"


def main() -> None:
    parser = script.parser(__doc__ or "")
    options.add(parser)
    parser.add_argument("--duration", type=float, default=120.0, help="seconds a rate, and of the closed loop")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once in the closed loop")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.25], help="of the capacity")
    parser.add_argument("--refinements", type=int, default=2, help="bisections after the loads")
    parser.add_argument("--percentile", type=float, default=0.99, help="share of requests that must keep the SLO")
    parser.add_argument("--confidence", type=float, default=0.99)
    parser.add_argument("--out", type=Path)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
