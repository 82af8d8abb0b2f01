"""`python -m cli.aisp`, installed as `aisp`: lists and measures targets by the DAG that `snakemake` runs. No torch.

A target run this way and by snakemake gives the same files, and neither measures again what the other measured with the
same settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from tabulate import tabulate

from serveproof import comparison, pairs, targets
from serveproof.comparison import number
from serveproof.config import AUTO_TIERS, read_yaml
from serveproof.errors import UserError
from serveproof.expectations import EXIT_MET, EXIT_REGRESSED, EXIT_USAGE
from serveproof.hardware.key import detect, device_of
from serveproof.results import MeasureRecord, read

Profile = StrEnum("Profile", ["none", "minimal", "deep_dive"])
GOOD = ("passed", "skipped")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measures which optimizations pay here.")
bench = typer.Typer(no_args_is_help=True, help="Measure pairs, by the DAG that snakemake runs.")
app.add_typer(bench, name="bench")


@app.callback()
def root() -> None:
    """Measures which LLM-serving optimizations pay on this machine."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A UserError as one line, with exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"serveproof: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None


def completed(incomplete: str) -> list[str]:
    """Targets that begin like this. Pairs go without their chapter too: bash breaks words at the colon."""
    names = pairs.names()
    every = [targets.CHAPTER, *names, *(f"{targets.CHAPTER}:{name}" for name in names)]
    return [name for name in every if name.startswith(incomplete)]


AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]


def listed(chapter: str) -> list[dict[str, Any]]:
    """Every target: what it optimizes, its cases on this kind of machine, and how its last measurement ended here."""
    targets.check_chapter(chapter)
    hardware = detect()
    workloads = read_yaml(pairs.ROOT / "config/workloads.yaml") or {}
    found = []
    for name in pairs.names():
        file = pairs.ROOT / "results" / hardware / "pairs" / name / "measure.json"
        state = "not measured here"
        if file.exists():
            record = read(file, MeasureRecord)
            code = "" if record.code_sha == pairs.code_sha(name) else ", by other code"
            state = f"measured {record.provenance.date_utc}{code}"
        tiers = AUTO_TIERS[device_of(hardware)]
        cases = [case["case"] for tier in tiers for case in workloads.get(name, {}).get(tier, [])]
        found.append({"target": f"{chapter}:{name}", "summary": pairs.summary(name), "cases": cases, "state": state})
    return found


@bench.command("list-targets")
def list_targets(
    chapter: Annotated[str, typer.Option(help="The chapter whose targets to list.")] = targets.CHAPTER,
    as_json: AsJson = False,
) -> None:
    """List what can be measured. Runs nothing."""
    with one_line_errors():
        found = listed(chapter)
        if as_json:
            print(json.dumps(found, indent=2))
            return
        rows = [(one["target"], ", ".join(one["cases"]) or "none on this machine", one["state"]) for one in found]
        print(tabulate(rows, headers=("target", "cases", "state")))


@bench.command()
def run(
    wanted: Annotated[
        list[str],
        typer.Option(
            "--targets",
            help="ch16 for all, ch16:PAIR or PAIR; again or by commas for several.",
            autocompletion=completed,
        ),
    ],
    profile: Annotated[
        Profile | None, typer.Option(help="profile.mode of the config: where the time goes, and how closely.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="measure.rounds of the config: A B B A rounds in each process.")
    ] = None,
    single_gpu: Annotated[
        bool, typer.Option("--single-gpu", help="Only the first visible GPU; none on a CPU.")
    ] = False,
    update_expectations: Annotated[
        bool, typer.Option("--update-expectations", help="Then rewrite expectations_{hardware}.json from what passed.")
    ] = False,
    configfile: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Over config/config.yaml, as snakemake's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure targets, and print their figures.

    Exit code 0: all passed, or were skipped with a reason; 1: a job or a case failed; 2: bad input. What is left unsaid
    is as config/config.yaml has it. compare.py judges the figures.
    """  # fmt: skip
    with one_line_errors():
        request = targets.Request(targets.parse(wanted), profile and profile.value, iterations, configfile)
        if single_gpu:
            targets.one_gpu()
        if dry_run:
            raise typer.Exit(planned(request, as_json))
        if targets.run(request, quiet=as_json):
            print("serveproof: a job failed, see above", file=sys.stderr)
            raise typer.Exit(EXIT_REGRESSED)
        raise typer.Exit(max(told(key, request, update_expectations, as_json) for key in targets.keys(configfile)))


def planned(request: targets.Request, as_json: bool) -> int:
    """What a run would do: snakemake's own words, or its summary as JSON."""
    if not as_json:
        return EXIT_USAGE if targets.run(request, "--dry-run") else EXIT_MET
    found = {"command": targets.command(request), "files": targets.planned(request)}
    print(json.dumps(found, indent=2))
    return EXIT_MET


def told(hardware: str, request: targets.Request, update: bool, as_json: bool) -> int:
    """Note the run in the history, and print one machine's figures of the targets; the exit code."""
    from serveproof import history  # polars, which completion need not wait for

    folder = pairs.ROOT / "results" / hardware
    history.note(folder)
    found = comparison.find(folder, request.pairs)
    lines = comparison.update(hardware, found) if update else []
    cases = [(record.pair, case) for record in found.measured for case in record.cases]
    if as_json:
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
        shown = [{"pair": pair, **msgspec.to_builtins(case)} for pair, case in cases]
        print(json.dumps({"hardware": hardware, "cases": shown}, indent=2))
    else:
        rows = [
            (
                f"{pair}/{case.case}", case.status,
                *(number(side.time.value if side else None) for side in (case.baseline, case.optimized)),
                number(case.speedup.value if case.speedup else None),
                f"{number(case.speedup.low)} .. {number(case.speedup.high)}" if case.speedup else "",
                (case.reason.strip().splitlines() or [""])[-1],
            )
            for pair, case in cases
        ]  # fmt: skip
        heads = ("target", "status", "baseline ms", "optimized ms", "speedup", "interval", "reason")
        print(*lines, tabulate(rows, headers=heads, disable_numparse=True), sep="\n")
    return EXIT_MET if all(case.status in GOOD for _, case in cases) else EXIT_REGRESSED


def main() -> None:
    app(prog_name="aisp")


if __name__ == "__main__":
    main()
