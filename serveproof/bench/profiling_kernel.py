"""Every kernel file as a program: `python kernels/optimized_X.py --profile minimal` profiles that side, no DAG needed.

Prints where the time goes, the side's rate, memory and page faults, and writes the record with its traces. --compare
measures both sides in turns and prints them beside each other; --profile none leaves the profile out. Needs the machine
alone: it waits for its lease. The ceilings are those of results/{hardware} where that machine has been examined, else
they are measured first. Writes results/{hardware}/kernels/{file}.json, unless --out says otherwise; with --profile none
nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tabulate import tabulate

from serveproof import pairs, script
from serveproof.bench import kernel_numbers, profiling
from serveproof.bench.job import Case, CaseReply, Job, gpus_of
from serveproof.bench.profiling_job import Options, RawKernel, add_options, options_of
from serveproof.config import AUTO_TIERS, read_yaml
from serveproof.errors import UserError
from serveproof.hardware import ceilings, key
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.profile_records import Profile, ProfileRecord
from serveproof.provenance import collect
from serveproof.results import SIDES, Ceilings, HardwareRecord, MeasureCase, read, write

SHOWN = 20


def side_of(file: Path) -> tuple[str, str]:
    """(side, pair) of kernels/{side}_{pair}.py."""
    side, _, pair = file.stem.partition("_")
    if side not in SIDES or file.parent.name != "kernels":
        raise UserError(f"{file}: not a kernel file; run kernels/baseline_X.py or kernels/optimized_X.py")
    return side, pair


def cases_of(pair: str, device: str, chosen: Sequence[str] = ()) -> list[Case]:
    """A pair's cases for this device in config/workloads.yaml, or those of them that are chosen."""
    entry = (read_yaml(pairs.ROOT / "config/workloads.yaml") or {}).get(pair, {})
    found = [
        msgspec.convert({"tier": tier, **case}, type=Case)
        for tier in AUTO_TIERS[device]
        for case in entry.get(tier, [])
    ]
    names = [case.case for case in found]
    for name in chosen:
        if name not in names:
            raise UserError(f"--case {name}: {pair} has no such case here; there are: {', '.join(names) or 'none'}")
    return [case for case in found if case.case in chosen] if chosen else found


def ceilings_of(hardware: str, threads: int) -> Ceilings:
    """The machine's ceilings: recorded, or measured now. Under the lease."""
    file = pairs.ROOT / "results" / hardware / "hardware.json"
    if file.exists():
        return read(file, HardwareRecord).ceilings
    device = key.device_of(hardware)
    start_torch(device, threads)
    return ceilings.measure(device)


def profile(
    pair: str, cases: list[Case], side: str, hardware: str, options: Options, threads: int, traces: Path
) -> tuple[ProfileRecord, dict[str, dict[str, list[RawKernel]]]]:
    """A pair's record without a measurement before it (side: only that one, '' both), and the counters raw."""
    device = key.device_of(hardware)
    started = time.monotonic()
    with lease(device, gpus=gpus_of(pair)) as held:
        found = ceilings_of(hardware, threads)
        job = Job(
            "profile", pair, cases, device, threads, rounds=1, warmup_rounds=1, seed=0, side=side, ranks=len(held)
        )
        profiled, notes, raw = profiling.profile_pair(job, found, options, traces)
    record = ProfileRecord(
        pair=pair,
        hardware=hardware,
        mode=options.mode,
        code_sha=pairs.code_sha(pair),
        cases=profiled,
        notes=notes,
        seconds=time.monotonic() - started,
        measure_seconds=None,
        provenance=collect(pairs.ROOT),
    )
    return record, raw


def table(found: Profile) -> str:
    """Where the time goes, what would pay most first."""
    rows = [
        (
            row.kind,
            row.name[:70],
            row.shapes[:44],
            f"{row.time_ms:.4g}",
            f"{100 * row.share:.1f}",
            "" if row.roofline_ms is None else f"{100 * row.roofline_ms / row.time_ms:.0f}" if row.time_ms else "",
            row.bound_by,
            f"{row.saved_ms:.4g}",
        )
        for row in found.hotspots[:SHOWN]
    ]
    heads = ("kind", "name", "shapes", "ms a call", "share %", "of roofline %", "bound by", "would pay, ms")
    return tabulate(rows, headers=heads, disable_numparse=True)


def summary(found: Profile) -> list[str]:
    """What a profile says beside its table, a line each."""
    if found.status != "passed":
        return [f"{found.status}: {(found.reason.strip().splitlines() or [''])[-1]}"]
    lines = [
        f"{found.backend}: {found.unprofiled_ms:.4g} ms a call, {found.profiled_ms:.4g} ms with the profiler, "
        f"{found.calls} calls"
    ]
    if found.launches:
        bound = "bound by launches" if found.launches.launch_bound else "not bound by launches"
        lines.append(
            f"{bound}: the device idles {100 * found.launches.idle_share:.0f} % of a call; "
            f"{found.launches.kernels:.0f} kernels"
        )
    lines += [f"waits for the device: {wait.what} x {wait.count:g} in {' > '.join(wait.stack)}" for wait in found.waits]
    lines += [f"{row.kernel[:70]}: {_counted(row.fraction)} of the roofline by counters" for row in found.counters[:5]]
    return lines + [f"note: {note}" for note in found.notes]


def _counted(fraction: float | None) -> str:
    return "unknown part" if fraction is None else f"{100 * fraction:.0f} %"


def measured(pair: str, cases: list[Case], hardware: str, arguments: argparse.Namespace) -> list[MeasureCase]:
    """Both sides in turns, as the DAG measures them; in --processes processes of --iterations rounds."""
    device = key.device_of(hardware)
    with lease(device, gpus=gpus_of(pair)) as held:
        job = Job(
            "time", pair, cases, device, arguments.threads, arguments.iterations, warmup_rounds=3, seed=0,
            ranks=len(held),
        )  # fmt: skip
        from serveproof.bench import measure  # polars: only where it is needed

        return measure.measure(job, arguments.processes, ceilings_of(hardware, arguments.threads))[0]


def probed(
    pair: str, cases: list[Case], side: str, hardware: str, threads: int, served: dict[str, str]
) -> dict[str, CaseReply]:
    """case -> memory and page faults of one side."""
    device = key.device_of(hardware)
    with lease(device, gpus=gpus_of(pair)) as held:
        job = Job("probe", pair, cases, device, threads, rounds=1, warmup_rounds=1, seed=0, ranks=len(held))
        return kernel_numbers.probe(job, side, served)


def work(arguments: argparse.Namespace) -> None:
    side, pair = side_of(Path(sys.argv[0]).resolve())
    if min(arguments.processes, arguments.iterations) < 2:
        raise UserError("--processes and --iterations: at least 2 of each, or there is no interval")
    hardware = "cpu" if arguments.cpu else key.detect()
    cases = cases_of(pair, key.device_of(hardware), arguments.case)
    if not cases:
        raise UserError(f"config/workloads.yaml: {pair} has no case for this machine ({hardware}); try --cpu")
    options = options_of(arguments)
    if options.mode != "none":
        profiled(pair, cases, side, hardware, options, arguments)
    if arguments.compare:
        for case in measured(pair, cases, hardware, arguments):
            print(
                f"\n{pair} {case.case}: both sides", kernel_numbers.beside(case), *kernel_numbers.notes(case), sep="\n"
            )
    elif options.mode == "none":
        print(f"{side}_{pair}: nothing to do with --profile none alone; give --compare, or --profile minimal")


def profiled(
    pair: str, cases: list[Case], side: str, hardware: str, options: Options, arguments: argparse.Namespace
) -> None:
    """Profile one side, write the record, print it with the side's numbers."""
    out = arguments.out or pairs.ROOT / "results" / hardware / "kernels" / f"{side}_{pair}.json"
    record, _ = profile(pair, cases, side, hardware, options, arguments.threads, out.parent / f"{out.stem}_traces")
    write(out, record)
    profiles: dict[str, Profile] = {case.case: getattr(case, side) for case in record.cases}
    good = [case for case in cases if profiles[case.case].status == "passed"]
    served = {case.case: profiles[case.case].backend for case in good}
    memory = probed(pair, good, side, hardware, arguments.threads, served) if good else {}
    for case in cases:
        found = profiles[case.case]
        print(f"\n{side}_{pair} {case.case}", *summary(found), sep="\n")
        if case.case in memory:
            print(*kernel_numbers.of_side(pair, case, found, memory[case.case]), sep="\n")
        if found.hotspots:
            print(table(found))
    print(*(f"note: {note}" for note in record.notes), f"written: {out}", sep="\n")


def main() -> None:
    parser = script.parser(__doc__ or "")
    add_options(parser)
    parser.add_argument("--case", action="append", default=[], help="only this case; may be given again")
    parser.add_argument("--compare", action="store_true", help="measure both sides in turns, and print them together")
    parser.add_argument("--processes", type=int, default=3, help="of --compare: each repeats all of it")
    parser.add_argument("--iterations", type=int, default=10, help="of --compare: A B B A rounds in each process")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, although there is a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record; results/{hardware}/kernels/{file}.json by default")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
