"""One machine's results held against its expectations: what compare.py and `aisp bench run` print. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from serveproof import accuracy_gates, config, expectations, load_judging, pairs
from serveproof.accuracy_records import PerplexityRecord
from serveproof.distributed_records import RankedRecord
from serveproof.errors import UserError
from serveproof.expectations import Expectations
from serveproof.load_records import LoadRecord
from serveproof.results import Judgement, MeasureRecord, Verdict, encode, read, write_atomically
from serveproof.serving_results import EngineRecord, LadderRecord

SIGNS = {"met": "✓", "regressed": "✗", "failed": "✗", "too_good": "!", "skipped": "-"}


@dataclass(frozen=True)
class Found:
    """The records of one results/{hardware} that have figures to judge; perplexity, ladders and loads for the gates."""

    measured: list[MeasureRecord]
    ranked: list[RankedRecord]
    tested: list[LoadRecord]
    perplexity: PerplexityRecord | None
    ladders: list[LadderRecord] = field(default_factory=list)
    loads: list[EngineRecord] = field(default_factory=list)


def find(folder: Path, chosen: Collection[str] | None = None) -> Found:
    """Read them. chosen: these pairs alone, with the perplexity that gates them. UserError where there is none."""
    measured = [read(path, MeasureRecord) for path in sorted(folder.glob("pairs/*/measure.json"))]
    # a folder may hold what an earlier run measured of a pair that is no more
    wanted = pairs.names() if chosen is None else chosen
    measured = [record for record in measured if record.pair in wanted]
    if chosen is not None:
        ranked, tested, ladders, loads = [], [], [], []
    else:
        ranked = [read(path, RankedRecord) for path in sorted(folder.glob("ranks/*.json"))]
        tested = [read(path, LoadRecord) for path in sorted(folder.glob("serving/*/*.json"))]
        ladders = [read(path, LadderRecord) for path in sorted(folder.glob("engine/ladder*.json"))]
        loads = [read(path, EngineRecord) for path in sorted(folder.glob("engine/load*.json"))]
    file = folder / "perplexity.json"
    perplexity = read(file, PerplexityRecord) if file.exists() else None
    if not measured and not ranked:
        what = f" of {', '.join(chosen)}" if chosen is not None else ""
        raise UserError(f"results/{folder.name}: nothing measured here yet{what}; run `snakemake --cores all`")
    return Found(measured, ranked, tested, perplexity, ladders, loads)


def known(hardware: str, root: Path = pairs.ROOT) -> Expectations | None:
    """This hardware's expectations; None where nobody has measured it yet."""
    file = expectations_file(hardware, root)
    return expectations.load(file) if file.exists() else None


def expectations_file(hardware: str, root: Path = pairs.ROOT) -> Path:
    return root / f"expectations_{hardware}.json"


def update(hardware: str, found: Found, root: Path = pairs.ROOT) -> list[str]:
    """Rewrite the hardware's file from what passed; the lines that tell of it."""
    file = expectations_file(hardware, root)
    made = expectations.updated(known(hardware, root), hardware, found.measured, found.ranked)
    made = load_judging.updated(made, found.tested)
    write_atomically(file, lambda path: path.write_bytes(encode(made)))
    wide = [*expectations.too_wide(hardware, found.measured), *load_judging.too_wide(found.tested)]
    return [f"{file.name}: rewritten from the cases that passed", *wide]


@dataclass(frozen=True)
class Gate:
    """The accuracy gate: its bound in percent of perplexity, and the bounds of those that have one of their own."""

    percent: float
    bounds: dict[str, float] = field(default_factory=dict)


def gate_of(judged: Path, root: Path = pairs.ROOT) -> Gate:
    """The accuracy gate that the last run was judged by; before any judging, the one in config/config.yaml."""
    if judged.exists():
        judgement = read(judged, Judgement)
        return Gate(judgement.max_increase_percent, judgement.gate_bounds)
    gate = config.read(root)["accuracy_gate"]
    return Gate(float(gate["max_increase_percent"]), gate.get("bounds", {}))


def judge(
    hardware: str, found: Found, wanted: Expectations | None, gate: Gate, chosen: Collection[str] | None = None
) -> list[Verdict]:
    """A verdict a figure; of chosen pairs, theirs alone, what is expected of them and was not measured included."""
    accuracy = []
    if found.perplexity:
        accuracy = accuracy_gates.judge_accuracy(found.perplexity, gate.percent, gate.bounds)
    verdicts = accuracy_gates.gated(expectations.judge_pairs(found.measured, wanted, hardware), accuracy)
    if chosen is not None:
        return [verdict for verdict in verdicts if verdict.subject.partition("/")[0] in chosen]
    verdicts += expectations.judge_ranks(found.ranked, wanted)
    verdicts += accuracy + accuracy_gates.judge_engine(found.ladders, found.loads, accuracy)
    return verdicts + load_judging.judge(found.tested, wanted)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def table(verdicts: list[Verdict]) -> str:
    """One line a verdict."""
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
