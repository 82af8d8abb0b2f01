"""Steps in the history: where a figure's level changed from one run to the next and stayed, with a stated false-alarm
rate. docs/history.md has the formulas. No torch.

Per series (one figure, asked alike on one machine) two scans over the logarithms of its runs' values: a change that
stays (each place splits the runs in two), and one that is taken back (each stretch against the runs around it). The
statistic of each place is the two-sample t with pooled variance; Bonferroni over the places of a scan, the two scans
and all series keeps the chance of any false step in one look at a machine's history at ALARM_RATE or below, if the runs
of a series are independent and normal on the logarithmic scale (Worsley, JASA 74, 1979, for the first scan).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from serveproof.results import Record

ALARM_RATE = 0.05
# runs on either side of a step, and in a stretch: one disturbed run is no level
LEAST = 3
# the least standard deviation of a run's logarithm: sums of equal numbers differ by their rounding
ROUNDING = 1e-9
# A series is one figure asked alike: other axes, clocks, rounds or machines begin another.
SERIES = ("hardware", "machine", "subject", "metric", "axes", "setting")
Floats = npt.NDArray[np.float64]


class Step(Record):
    """One step: the level before it against the level after it, each up to the next step.

    commit: of the first run after it; before: of the last run before it. change_percent with its 95 % interval, given
    the place. p_value: corrected for every place and series that was looked at. causes: what of the records changed.
    """

    subject: str
    metric: str
    machine: str
    setting: str
    commit: str
    before: str
    dirty: bool
    date_utc: str
    runs_before: int
    runs_after: int
    change_percent: float
    low_percent: float
    high_percent: float
    p_value: float
    better: bool
    causes: list[str]


def series_of(runs: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Each series, oldest run first. A record that several runs hold, for it was not measured again, counts once."""
    measured = runs.filter(pl.col("status") == "passed", pl.col("value").is_not_null())
    for _, points in measured.group_by(SERIES, maintain_order=True):
        once = points.unique("record_sha", keep="first", maintain_order=True)
        yield once.sort("measured_utc", maintain_order=True)


def logarithms(values: Floats, unit: str) -> Floats:
    """On the logarithmic scale; a difference in percent as the ratio that it stands for."""
    return np.log(1 + values / 100 if unit == "%" else values)


def is_positive(values: Floats, unit: str) -> bool:
    """Whether every value has a logarithm."""
    return bool(np.all(values > (-100 if unit == "%" else 0)))


def noise_floor(points: pl.DataFrame) -> float:
    """The least variance that a run's logarithm is taken to have: the mean of what the runs' own intervals say."""
    unit = points["unit"][0]
    low, high = (points[name].to_numpy() for name in ("low", "high"))
    if not (is_positive(low, unit) and is_positive(high, unit)):
        return 0.0
    deviations = (logarithms(high, unit) - logarithms(low, unit)) / (2 * 1.96)
    return float(np.mean(deviations**2))


def _p_values(values: Floats, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], floor: float) -> Floats:
    """Two-sided p of the t of values[start:end] against the rest, for each (start, end)."""
    from scipy.stats import t  # slow to import: only when steps are looked for

    count = len(values)
    sums = np.concatenate(([0.0], np.cumsum(values - values.mean())))
    inside = (ends - starts).astype(float)
    outside = count - inside
    differences = (sums[ends] - sums[starts]) * (1 / inside + 1 / outside)
    total = float(np.sum((values - values.mean()) ** 2))
    within = total - differences**2 * inside * outside / count
    variances = np.maximum(within / (count - 2), max(floor, ROUNDING**2))
    statistics = np.abs(differences) / np.sqrt(variances * (1 / inside + 1 / outside))
    return np.asarray(2 * t.sf(statistics, count - 2), dtype=np.float64)


def find(values: Floats, floor: float = 0.0, rate: float = ALARM_RATE) -> list[tuple[int, float]]:
    """(index of the first run of the new level, p corrected for the places) of each step in one series.

    values: logarithms, oldest first. floor: noise_floor. A part between two steps is looked at again, each at its share
    of the rate.
    """
    count = len(values)
    if count < 2 * LEAST:
        return []
    cuts: list[int] = []
    ends = np.arange(LEAST, count - LEAST + 1)
    first = _p_values(values, np.zeros_like(ends), ends, floor) * len(ends) * 2
    if first.min() <= rate:
        cuts, p_value = [int(ends[first.argmin()])], float(first.min())
    elif count >= 3 * LEAST:
        begins, stops = np.triu_indices(count + 1, LEAST)
        inner = (begins >= LEAST) & (stops <= count - LEAST)
        begins, stops = begins[inner], stops[inner]
        second = _p_values(values, begins, stops, floor) * len(begins) * 2
        if second.min() <= rate:
            place = int(second.argmin())
            cuts, p_value = [int(begins[place]), int(stops[place])], float(second.min())
    if not cuts:
        return []
    found = [(cut, p_value) for cut in cuts]
    for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
        further = find(values[begin:end], floor, rate / (len(cuts) + 1))
        found += [(begin + cut, p) for cut, p in further]
    return sorted(found)


def _change(before: Floats, after: Floats) -> tuple[float, float, float]:
    """The change of the mean in percent, with its 95 % interval by Student's t."""
    from scipy.stats import t

    degrees = len(before) + len(after) - 2
    pooled = (np.sum((before - before.mean()) ** 2) + np.sum((after - after.mean()) ** 2)) / degrees
    half = float(t.ppf(0.975, degrees)) * float(np.sqrt(pooled * (1 / len(before) + 1 / len(after))))
    middle = float(after.mean() - before.mean())
    change, low, high = (100 * float(np.expm1(middle + sign * half)) for sign in (0, -1, 1))
    return change, low, high


def _causes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What of the two runs' records differs."""
    found = ["its code"] if before["code_sha"] != after["code_sha"] else []
    old, new = (dict(word.partition("=")[::2] for word in one["environment"].split(" ")) for one in (before, after))
    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    found += [f"{name} {old.get(name) or 'none'} → {new.get(name) or 'none'}" for name in names]
    return found or ["neither its code nor the environment: the harness, or the machine"]


def steps_of(points: pl.DataFrame, series: int) -> list[Step]:
    """The steps of one of `series` series that are looked at together."""
    unit = points["unit"][0]
    raw = points["value"].to_numpy()
    if not is_positive(raw, unit):
        return []
    values = logarithms(raw, unit)
    cuts = find(values, noise_floor(points), ALARM_RATE / series)
    edges = [0, *(cut for cut, _ in cuts), len(values)]
    steps = []
    for number, (cut, p_value) in enumerate(cuts):
        before, after = values[edges[number] : cut], values[cut : edges[number + 2]]
        change, low, high = _change(before, after)
        last, first = points.row(cut - 1, named=True), points.row(cut, named=True)
        steps.append(
            Step(
                first["subject"], first["metric"], first["machine"], first["setting"], first["commit"], last["commit"],
                first["dirty"], first["measured_utc"], len(before), len(after), change, low, high,
                min(1.0, p_value * series), (change > 0) == first["higher_is_better"], _causes(last, first),
            )
        )  # fmt: skip
    return steps


def of_history(runs: pl.DataFrame) -> tuple[list[Step], int]:
    """(every step of a machine's history, newest first; how many series were long enough to have one)."""
    tested = [points for points in series_of(runs) if points.height >= 2 * LEAST]
    found = [step for points in tested for step in steps_of(points, len(tested))]
    return sorted(found, key=lambda step: (step.date_utc, step.subject, step.metric), reverse=True), len(tested)
