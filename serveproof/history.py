"""The history of runs: one Parquet file a run, a row a figure (serveproof.tables.HISTORY_SCHEMA). No torch.

results/history/{hardware}/{date}_{commit}_{code}.parquet: `date` is when the newest of its records was measured,
`commit` what was checked out then, `code` a hash over the code of everything measured. All three come from the records,
so the same results give the same file however often they are noted.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from serveproof import accuracy_gates, comparison, expectations, load_judging, pairs
from serveproof.comparison import Found
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.provenance import MEASURING
from serveproof.results import Estimate, HardwareRecord, Judgement, Provenance, Record, read, write_atomically
from serveproof.tables import HISTORY_SCHEMA

Row = dict[str, Any]
UNKNOWN = "unknown"


def _sha(record: Record) -> str:
    return hashlib.sha256(msgspec.json.encode(record)).hexdigest()[:16]


def _environment(provenance: Provenance) -> str:
    """Versions and driver that can change a figure, as one line: serveproof.provenance.environment's."""
    known = {name: provenance.versions[name] for name in ("python", *MEASURING) if name in provenance.versions}
    return " ".join(f"{name}={version}" for name, version in (known | {"driver": provenance.driver}).items())


def _of_record(record: Any, machine: str, code_sha: str, provenance: Provenance) -> Row:
    return {
        "hardware": record.hardware,
        "machine": machine,
        "commit": provenance.commit,
        "dirty": provenance.dirty,
        "code_sha": code_sha,
        "environment": _environment(provenance),
        "measured_utc": provenance.date_utc,
        "record_sha": _sha(record),
    }


def _figure(shared: Row, subject: str, metric: str, estimate: Estimate | None, better: bool, **more: Any) -> Row:
    """One row; without an estimate, of what did not pass."""
    seen = {name: getattr(estimate, name, None) for name in ("value", "low", "high")}
    unit = estimate.unit if estimate else ""
    row = {"status": "passed", "unit": unit, "axes": "", "setting": "", **more}
    return shared | {"subject": subject, "metric": metric, "higher_is_better": better, **seen, **row}


def _axes(axes: dict[str, Any]) -> str:
    return json.dumps(axes, sort_keys=True)


def _of_pairs(found: Found) -> Iterator[Row]:
    for record in found.measured:
        shared = _of_record(record, record.machine, record.code_sha, record.provenance)
        for case in record.cases:
            subject, axes = f"{record.pair}/{case.case}", _axes(case.axes)
            figures = expectations.figures_of(case, device_of(record.hardware))
            timing, setting = case.timing, ""
            if timing:
                slowed = timing.injected_slowdown_percent
                setting = f"{timing.processes} processes x {timing.rounds} rounds, {timing.threads} threads, " + (
                    f"{timing.method}, slowed on purpose by {slowed:g} %" if slowed else timing.method
                )
            for metric, estimate in figures.items():
                better = expectations.METRICS[metric][0]
                yield _figure(shared, subject, metric, estimate, better, axes=axes, setting=setting)
            if not figures:
                yield _figure(shared, subject, "speedup", None, True, axes=axes, status=case.status)


def _of_ranks(found: Found) -> Iterator[Row]:
    for record in found.ranked:
        shared = _of_record(record, record.machine, record.code_sha, record.provenance)
        setting = f"{record.world} ranks on {record.nodes} nodes, {record.backend}"
        for case in record.cases:
            subject, axes = f"{record.script}/{case.case}", _axes(case.axes)
            for metric, one in expectations.judged_figures(record, case).items():
                better = one.higher_is_better
                yield _figure(shared, subject, metric, one.estimate, better, axes=axes, setting=setting)
            if case.status != "passed":
                yield _figure(shared, subject, expectations.HOLDS, None, True, axes=axes, status=case.status)


def _of_load_tests(found: Found) -> Iterator[Row]:
    for one in load_judging.figures(found.tested):
        record = one.record
        shared = _of_record(record, record.machine, "", record.provenance)
        # a client that was late is no fault of the server: such a figure is not there, as one that was not measured
        status = "passed" if one.estimate and not one.fault else "failed"
        if status == "failed" and one.fault and one.fault[0] != "failed":
            continue
        yield _figure(
            shared, f"serving/{one.subject}", one.metric, one.estimate if status == "passed" else None,
            load_judging.METRICS[one.metric], axes=_axes(record.axes), setting=f"{len(record.runs)} runs",
            status=status,
        )  # fmt: skip


def _of_precisions(found: Found, machine: str) -> Iterator[Row]:
    record = found.perplexity
    if record is None or record.provenance is None:
        return
    shared = _of_record(record, machine, "", record.provenance)
    axes = _axes(
        {"model": record.model.source_sha256, "text": record.text.sha256, "tokens": record.tokens,
         "window": record.window_tokens, "stride": record.stride_tokens}
    )  # fmt: skip
    for one in accuracy_gates.judged_precisions(record):
        subject = f"perplexity/{one.precision}"
        yield _figure(shared, subject, "relative_to_bf16", one.relative_to_bf16, False, axes=axes)


def rows_of(found: Found, machine: str) -> pl.DataFrame:
    """The run that these records are. machine: of what names none itself. UserError when there is no figure in them."""
    rows = [*_of_pairs(found), *_of_ranks(found), *_of_load_tests(found), *_of_precisions(found, machine)]
    if not rows:
        raise UserError("no figure in these results: nothing that belongs in the history was measured")
    newest = max(rows, key=lambda row: str(row["measured_utc"]))
    codes = "".join(sorted({f"{row['subject']} {row['code_sha']}\n" for row in rows}))
    # a commit that is not known is words, and a folder's name must not hold them
    commit = newest["commit"][:12] if re.fullmatch(r"[0-9a-f]{7,64}", newest["commit"]) else UNKNOWN
    date = re.sub(r"[^0-9TZ]", "", str(newest["measured_utc"]).replace("+00:00", "Z"))
    name = f"{date}_{commit}{'+' if newest['dirty'] else ''}_{hashlib.sha256(codes.encode()).hexdigest()[:8]}"
    run = {"run": name, "run_utc": newest["measured_utc"], "run_commit": newest["commit"]}
    return pl.DataFrame([run | row for row in rows], schema=HISTORY_SCHEMA)


def of_folder(folder: Path, chosen: Collection[str] | None = None) -> pl.DataFrame:
    """The run that lies in a results/{hardware} folder, or in one of reports/published; of its pairs those chosen."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of results; run `snakemake --cores all` to make it")
    found = comparison.find(folder)
    if chosen is not None:
        found = replace(found, measured=[record for record in found.measured if record.pair in chosen])
    return rows_of(found, read(folder / "hardware.json", HardwareRecord).name)


def folder_of(results: Path) -> Path:
    """Where the runs of a results/{hardware} folder are noted; one elsewhere, as a published one, has its own."""
    inside = results.parent.name != "results"
    return results / "history" if inside else results.parent / "history" / results.name


def append(folder: Path, run: pl.DataFrame) -> Path:
    """Note a run, whole or not at all; one that is noted already stays untouched."""
    path = folder / f"{run['run'][0]}.parquet"
    if not path.exists() or not read_run(path).equals(run):
        write_atomically(path, run.write_parquet)
    return path


def note(results: Path, chosen: Collection[str] | None = None) -> Path:
    """Note the run that lies in a results/{hardware} folder; of its pairs those chosen."""
    return append(folder_of(results), of_folder(results, chosen))


def read_run(path: Path) -> pl.DataFrame:
    """One run's file; a broken one is a UserError that names it."""
    try:
        return pl.read_parquet(path, columns=list(HISTORY_SCHEMA)).cast(HISTORY_SCHEMA)  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a run of the history ({reason}); delete it, the other runs stay") from None


def load(folder: Path) -> pl.DataFrame:
    """Every run that a history folder holds, oldest first; an empty frame where there is none."""
    runs = [read_run(path) for path in sorted(folder.glob("*.parquet"))]
    if not runs:
        return pl.DataFrame(schema=HISTORY_SCHEMA)
    return pl.concat(runs).sort("run_utc", "run", maintain_order=True)


def _of_judgement(path: Path) -> pl.DataFrame:
    """What a judgement holds: figures and intervals, without axes, machine and code."""
    judgement = read(path, Judgement)
    better = {name: one[0] for name, one in expectations.METRICS.items()} | load_judging.METRICS
    blank: Row = dict.fromkeys(HISTORY_SCHEMA, "") | {"dirty": False, "run": path.name, "hardware": judgement.hardware}
    rows = []
    for one in judgement.verdicts:
        if one.low is None or one.high is None:
            continue
        status = "failed" if one.verdict == "failed" else "passed"
        figures = {"value": one.value, "low": one.low, "high": one.high, "unit": one.unit}
        metric = {"subject": one.subject, "metric": one.metric, "higher_is_better": better.get(one.metric)}
        rows.append(blank | figures | metric | {"status": status})
    if not rows:
        raise UserError(f"{path}: holds no figure with an interval; there is nothing to compare")
    return pl.DataFrame(rows, schema=HISTORY_SCHEMA)


def named(name: str, hardware: str, root: Path = pairs.ROOT) -> pl.DataFrame:
    """The run that a user names: a results folder, a run's .parquet, a judgement.json, or a commit of the history.

    Of several runs of one commit, the newest.
    """
    path = Path(name)
    if path.is_dir():
        return of_folder(path)
    if path.is_file():
        return _of_judgement(path) if path.suffix == ".json" else read_run(path)
    folder = root / "results" / "history" / hardware
    runs = load(folder)
    commit = _commit(name, root)
    chosen = runs.filter(pl.col("run_commit").str.starts_with(commit)) if commit else runs.clear()
    if not chosen.height:
        there = list(dict.fromkeys(one[:12] for one in runs["run_commit"].to_list()))
        known = f"it has {', '.join(there[-8:])}" if there else "it is empty; `snakemake --cores all` notes each run"
        raise UserError(f"'{name}': no such file, and no run of that commit in results/history/{hardware}; {known}")
    return chosen.filter(pl.col("run") == chosen["run"][-1])


def _commit(name: str, root: Path) -> str:
    """A commit's hash as git resolves it (HEAD~1, a tag), or the beginning of one as it stands; '' for neither."""
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"], cwd=root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return done.stdout.strip()
    return name if re.fullmatch(r"[0-9a-f]{4,64}", name) else ""
