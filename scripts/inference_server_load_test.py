"""Rule load_test: drives a server over HTTP, open loop, and says how it served: TTFT, TPOT, gaps, goodput, fairness.

Starts the server (--model; without it on the model that the DAG prepares), or drives one that runs (--base-url: any of
OpenAI's routes, vLLM or SGLang too; key in SERVEPROOF_API_KEY). Each scenario's load is a share of what the server can
carry: from a sweep's record (--capacity), from --rate, or measured first by a closed loop.

Needs a model (a directory, a config.json or a shape such as llama-1b), or a server that runs. Prints a table. Writes to
--out-folder, per scenario, a JSON record, one row a request and one row a second as Parquet; without it nothing.
Formulas: docs/load_test.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from tabulate import tabulate

from serveproof import script, targets
from serveproof.errors import UserError
from serveproof.load_records import LoadRecord, LoadRun, SweepRecord
from serveproof.load_test import arrivals, options
from serveproof.load_test.options import Setting
from serveproof.load_test.outcomes import ClientJob
from serveproof.load_test.run_figures import Run, table
from serveproof.load_test.scenarios import SCENARIOS, plan, plan_trace
from serveproof.load_test.session import capacity, figures, run_once
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import read, write, write_atomically

# what rule prepare_model writes last
PREPARED = "results/inputs/model/model.json"
DEFAULT = ("steady", "bursty", "overload", "multi_tenant", "long_prompts")
TRACE, CLOSED = "trace", "closed"


def known_capacity(arguments: argparse.Namespace) -> float | None:
    """Requests a second that count as a load of 1, where they are given."""
    if arguments.rate is not None:
        if not arguments.rate > 0:
            raise UserError(f"--rate {arguments.rate:g}: must be more than 0 requests/s")
        return float(arguments.rate)
    return read(arguments.capacity, SweepRecord).capacity_per_s if arguments.capacity else None


def measured_capacity(arguments: argparse.Namespace, setting: Setting) -> float:
    """The same, found by a closed loop."""
    script.say(arguments.log, f"no --rate: finding the capacity with {arguments.concurrency} requests at once")
    found, _ = capacity(setting.target, setting.workload, arguments.concurrency, min(30.0, arguments.duration))
    script.say(arguments.log, f"capacity: {found:.2f} requests/s")
    return found


def job_of(
    arguments: argparse.Namespace, setting: Setting, name: str, rate: float, number: int
) -> tuple[ClientJob, float | None]:
    """(what one run sends, at which rate; a closed loop has none)."""
    if name == CLOSED:
        return setting.target.closed(setting.workload, arguments.closed_loop, arguments.duration, number), None
    if name == TRACE:
        traced = arrivals.replayed(arrivals.read_trace(arguments.trace), arguments.duration, arguments.rate)
        return setting.target.job(plan_trace(traced, setting.workload, number)), len(traced) / arguments.duration
    scenario = SCENARIOS[name]
    requests = plan(scenario, setting.workload, rate, arguments.duration, number)
    return setting.target.job(requests), scenario.load * rate


def one_scenario(arguments: argparse.Namespace, setting: Setting, name: str, rate: float) -> LoadRecord:
    """All runs of one scenario, written where --out-folder says."""
    runs: list[Run] = []
    telemetry: list[pl.DataFrame] = []
    offered: float | None = None
    for number in range(1, arguments.runs + 1):
        job, offered = job_of(arguments, setting, name, rate, number)
        run, seconds = run_once(setting.target, job, arguments.duration, number)
        runs.append(run)
        telemetry.append(seconds)
        script.say(arguments.log, f"{name}, run {number} of {arguments.runs}: {told(run.record)}")
    record = LoadRecord(
        hardware=arguments.key,
        machine=setting.machine,
        server=setting.server,
        server_command=setting.command,
        model=setting.workload.model,
        scenario=name,
        rate_per_s=offered,
        capacity_per_s=rate or None,
        gpus=setting.gpus,
        slo=setting.target.slo,
        seed=arguments.seed,
        axes=setting.axes(arguments.duration),
        runs=[run.record for run in runs],
        figures=figures(runs, arguments.timeout),
        provenance=collect(ROOT),
    )
    if arguments.out_folder:
        folder: Path = arguments.out_folder
        write_atomically(folder / f"{name}.requests.parquet", table(runs, setting.target.slo).write_parquet)
        write_atomically(folder / f"{name}.telemetry.parquet", pl.concat(telemetry).write_parquet)
        write(folder / f"{name}.json", record)
    return record


def told(run: LoadRun) -> str:
    """One line a run."""
    flags = [] if run.valid else [f"INVALID: {run.invalid_reason}"]
    if run.steadiness.verdict != "steady":
        flags.append(f"{run.steadiness.verdict.replace('_', ' ')}: {run.steadiness.reason}")
    endings = ", ".join(f"{count} {name}" for name, count in run.endings.items())
    return f"{run.requests} requests ({endings}), {run.good_per_s:.2f} good/s; {'; '.join(flags) or 'steady'}"


def summary(records: Sequence[LoadRecord]) -> str:
    """The table: one line a run."""
    rows = []
    for record in records:
        for run in record.runs:
            middles = [
                f"{value.p50.value:.0f} / {value.p99.value:.0f}" if value else "-"
                for value in (run.ttft, run.tpot, run.gap, run.e2e)
            ]
            rows.append([
                record.scenario, record.server, f"{run.offered_per_s:.2f}", f"{run.completed_per_s:.2f}",
                f"{run.good_per_s:.2f}", f"{run.output_tokens_per_s:.1f}", *middles,
                f"{100 * run.answered_share:.1f}", f"{run.fairness.jain:.2f}" if run.fairness else "-",
                f"{run.energy.joules_per_output_token:.3f}" if run.energy.joules_per_output_token else "-",
                f"{run.cost_per_million_tokens:.2f}" if run.cost_per_million_tokens else "-",
                f"{run.lag_p99_ms:.1f}", run.steadiness.verdict if run.valid else "INVALID",
            ])  # fmt: skip
    heads = ["scenario", "server", "offered/s", "done/s", "good/s", "tokens/s", "TTFT ms", "TPOT ms", "gap ms",
             "e2e ms", "answered %", "Jain", "J/token", "cost/Mtok", "lag p99", "state"]  # fmt: skip
    return tabulate(rows, heads) + "\nlatencies: p50 / p99, of the requests that were answered"


def work(arguments: argparse.Namespace) -> None:
    if arguments.trace and arguments.closed_loop is not None:
        raise UserError("--trace has times of its own, --closed-loop has none; give one of the two")
    alone = TRACE if arguments.trace else CLOSED if arguments.closed_loop is not None else None
    names = [alone] if alone else arguments.scenario or list(DEFAULT)
    for name in names:
        if name not in (*SCENARIOS, alone):
            raise UserError(f"--scenario {name}: there are {', '.join(SCENARIOS)}")
    if arguments.duration <= 0 or min(arguments.runs, arguments.closed_loop or 1) < 1 or arguments.closed_loop == 0:
        raise UserError("--duration must be more than 0 s, --runs and --closed-loop at least 1")
    known = known_capacity(arguments)
    if not arguments.model and not arguments.base_url:
        arguments.model = str(targets.made(PREPARED).parent)
    with options.opened(arguments, known) as setting:
        rate = 0.0 if alone else known or measured_capacity(arguments, setting)
        records = [one_scenario(arguments, setting, name, rate) for name in names]
    print(summary(records))
    for record in records:
        for run in record.runs:
            for error in run.first_errors:
                print(f"{record.scenario}, run {run.number}: {error}")


def main() -> None:
    parser = script.parser(__doc__ or "")
    options.add(parser)
    parser.add_argument("--scenario", nargs="+", help=f"{', '.join(SCENARIOS)}; without it {', '.join(DEFAULT)}")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds a run")
    parser.add_argument("--runs", type=int, default=1, help="how often each scenario is run")
    parser.add_argument("--rate", type=float, help="requests/s that count as a load of 1; of a trace: its mean rate")
    parser.add_argument("--capacity", type=Path, help="sweep.json whose capacity counts as a load of 1")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once while finding the capacity")
    parser.add_argument("--trace", type=Path, help="replay BurstGPT's CSV or Mooncake's JSONL instead of scenarios")
    parser.add_argument("--closed-loop", type=int, metavar="USERS", help="so many users that wait for their answers, "
                        "instead of scenarios; it hides queueing")  # fmt: skip
    parser.add_argument("--out-folder", type=Path)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
