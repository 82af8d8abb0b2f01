"""What the report shows, read from results/{hardware}: the only module of the report that reads results.

hardware.json must be there. Anything else that is missing is kept as absent with the reason, so that a run that was
stopped half-way still gives a page; a file that is there but broken is a UserError that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from serveproof import history, results, steps
from serveproof.accuracy_records import PerplexityRecord
from serveproof.cluster.usage import JobUsage, usages
from serveproof.distributed_records import RankedRecord
from serveproof.errors import UserError
from serveproof.load_records import LoadRecord, SweepRecord
from serveproof.profile_records import DecoderProfileRecord, ProfileRecord
from serveproof.results import HardwareRecord, Judgement, MeasureCase, MeasureRecord, VerifyRecord
from serveproof.serving_results import EngineRecord, LadderRecord
from serveproof.steps import Step
from serveproof.tables import REQUESTS_SCHEMA, SAMPLES_SCHEMA, TELEMETRY_SCHEMA, TOKENS_SCHEMA

Records = Collection[Path] | None
Columns = Mapping[str, pl.DataType | type[pl.DataType]]
LOSS_COLUMNS = {name: TOKENS_SCHEMA[name] for name in ("precision", "window", "nll_nats")}
WINDOWS_SCHEMA = {"precision": pl.String, "window": pl.Int64, "delta_nats": pl.Float64}


@dataclass(frozen=True)
class Absent:
    """Something that the report would show and that is not there."""

    what: str
    reason: str


@dataclass(frozen=True)
class PairResults:
    """One pair on one machine; a part that was not made is None (samples: an empty frame). Profiles are optional."""

    name: str
    verify: VerifyRecord | None
    measure: MeasureRecord | None
    samples: pl.DataFrame
    profile: ProfileRecord | None = None

    def measured_case(self, case: str) -> MeasureCase | None:
        """The measured case of that name, or None."""
        cases = self.measure.cases if self.measure else []
        return next((one for one in cases if one.case == case), None)


@dataclass(frozen=True)
class LoadTest:
    """One scenario against one server: its record, one row a request, one row a second."""

    record: LoadRecord
    requests: pl.DataFrame
    telemetry: pl.DataFrame


@dataclass(frozen=True)
class Serving:
    """Load tests, and the sweep that said what the server carries."""

    tests: list[LoadTest]
    sweep: SweepRecord | None


@dataclass(frozen=True)
class Machine:
    """One results/{hardware} folder. `window_deltas`: mean nats a token by window, each precision minus fp32."""

    folder: Path
    hardware: HardwareRecord
    judgement: Judgement | None
    perplexity: PerplexityRecord | None
    window_deltas: pl.DataFrame
    pairs: list[PairResults]
    decoder: DecoderProfileRecord | None = None
    ladders: list[LadderRecord] = field(default_factory=list)
    loads: list[EngineRecord] = field(default_factory=list)
    serving: Serving | None = None
    ranked: list[RankedRecord] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    jobs: list[JobUsage] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """The runs of one kind of machine (tables.HISTORY_SCHEMA), the steps among them, how many series could have one."""

    key: str
    runs: pl.DataFrame
    steps: list[Step]
    tested: int


def collect_history(folder: Path) -> History:
    """What is noted of the runs of a results/{hardware} folder; a folder of reports/published has its own."""
    runs = history.load(history.folder_of(folder))
    found, tested = steps.of_history(runs)
    return History(folder.name, runs, found, tested)


def collect(folder: Path, pairs: list[str] | None = None, records: Records = None) -> Machine:
    """Read one results/{hardware} folder; of its pairs those named, or all; of profiles, ladders, ranks and load tests
    the files that `records` names, or all.

    A folder may hold what an earlier run made and the last one left out: that is not part of it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of results; run `snakemake --cores all` to make it")
    absent: list[Absent] = []
    hardware = results.read(folder / "hardware.json", HardwareRecord)
    judgement = _optional(folder / "judgement.json", Judgement, "Verdicts", absent)
    perplexity = _optional(folder / "perplexity.json", PerplexityRecord, "Accuracy", absent)
    window_deltas = pl.DataFrame(schema=WINDOWS_SCHEMA)
    if perplexity is not None:
        tokens = _table(folder / "perplexity.parquet", LOSS_COLUMNS, "Losses by token", absent)
        window_deltas = deltas_by_window(tokens)
    there = sorted(path for path in folder.glob("pairs/*") if path.is_dir())
    pair_folders = [path for path in there if pairs is None or path.name in pairs]
    if not pair_folders:
        absent.append(Absent("Pairs", f"{folder / 'pairs'} holds no pair: none was run on this machine"))
    found = [_pair(path, absent, records) for path in pair_folders]
    decoder = _whole(folder / "decoder_profile.json", DecoderProfileRecord, "Decoder profile", absent, records)
    ladders = _all(folder, "engine/ladder*.json", LadderRecord, "Ladder", absent, records)
    # made by hand: no run leaves them out
    loads = _all(folder, "engine/load*.json", EngineRecord, "Engine under load", absent)
    ranked = _all(folder, "ranks/*.json", RankedRecord, "Several ranks", absent, records)
    return Machine(
        folder,
        hardware,
        judgement,
        perplexity,
        window_deltas,
        found,
        decoder,
        ladders=ladders,
        loads=loads,
        serving=_serving(folder / "serving", absent, records),
        ranked=ranked,
        absent=absent,
        jobs=usages(folder / "logs"),
    )


def _serving(folder: Path, absent: list[Absent], records: Records) -> Serving | None:
    tests = []
    for path in sorted(folder.glob("*/*.json")):
        if not _made(path, records):
            continue
        record = results.read(path, LoadRecord)
        what = f"Load test {record.scenario} of {record.server}"
        requests = _table(path.with_suffix(".requests.parquet"), REQUESTS_SCHEMA, f"{what}: requests", absent)
        telemetry = _table(path.with_suffix(".telemetry.parquet"), TELEMETRY_SCHEMA, f"{what}: telemetry", absent)
        tests.append(LoadTest(record, requests, telemetry))
    sweep = _whole(folder / "sweep.json", SweepRecord, "Rate sweep", absent, records)
    return Serving(tests, sweep) if tests or sweep else None


def deltas_by_window(tokens: pl.DataFrame) -> pl.DataFrame:
    """Mean NLL of each window and precision minus the same window's mean in fp32 (WINDOWS_SCHEMA)."""
    means = tokens.group_by("precision", "window", maintain_order=True).agg(
        pl.col("nll_nats").cast(pl.Float64).mean().alias("mean_nats")
    )
    fp32 = means.filter(pl.col("precision") == "fp32").select("window", pl.col("mean_nats").alias("fp32_nats"))
    paired = means.filter(pl.col("precision") != "fp32").join(fp32, on="window", how="inner")
    return paired.select("precision", "window", (pl.col("mean_nats") - pl.col("fp32_nats")).alias("delta_nats"))


def _pair(folder: Path, absent: list[Absent], records: Records) -> PairResults:
    name = folder.name
    verify = _optional(folder / "verify.json", VerifyRecord, f"{name}: verification", absent)
    measure = _optional(folder / "measure.json", MeasureRecord, f"{name}: measurement", absent)
    samples = pl.DataFrame(schema=SAMPLES_SCHEMA)
    # A pair of which nothing passed has no samples, and needs none.
    if measure is not None and any(case.status == "passed" for case in measure.cases):
        samples = _table(folder / "samples.parquet", SAMPLES_SCHEMA, f"{name}: samples", absent)
    profile = _whole(folder / "profile.json", ProfileRecord, f"{name}: profile", absent, records)
    return PairResults(name, verify, measure, samples, profile)


def _made(path: Path, records: Records) -> bool:
    """Whether the run made it; whatever is there, where nobody says what the run made."""
    return path.exists() and (records is None or path in records)


def _whole(
    path: Path, kind: type[results.R], what: str, absent: list[Absent], records: Records = None
) -> results.R | None:
    """What nothing else depends on: none is fine, and a broken one is left out with its reason."""
    try:
        return results.read(path, kind) if _made(path, records) else None
    except UserError as error:
        absent.append(Absent(what, str(error)))
        return None


def _all(
    folder: Path, pattern: str, kind: type[results.R], what: str, absent: list[Absent], records: Records = None
) -> list[results.R]:
    """Records of one kind by name, each optional."""
    found = [_whole(path, kind, f"{what}: {path.stem}", absent, records) for path in sorted(folder.glob(pattern))]
    return [record for record in found if record is not None]


def _optional(path: Path, kind: type[results.R], what: str, absent: list[Absent]) -> results.R | None:
    if not path.exists():
        absent.append(Absent(what, f"{path} was not made: the job did not run or did not finish"))
        return None
    return results.read(path, kind)


def _table(path: Path, schema: Columns, what: str, absent: list[Absent]) -> pl.DataFrame:
    if not path.exists():
        absent.append(Absent(what, f"{path} was not made: the job did not run or did not finish"))
        return pl.DataFrame(schema=dict(schema))
    try:
        frame = pl.read_parquet(path, columns=list(schema))
        return frame.cast(schema)  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: not a whole table of {', '.join(schema)} ({reason}); delete it and run `snakemake --cores all`"
        ) from None
