"""Two runs beside each other, figure by figure: `python compare.py --against COMMIT|FILE`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
from tabulate import tabulate

from serveproof.comparison import number
from serveproof.errors import UserError
from serveproof.expectations import EXIT_MET, EXIT_NOT_JUDGED, EXIT_REGRESSED, MARGINS, judge_interval
from serveproof.hardware.key import device_of
from serveproof.load_judging import ratio
from serveproof.results import Estimate

Outcome = Literal["same", "better", "worse", "failed", "inconclusive", "not_compared"]
OUTCOMES: dict[str, tuple[Outcome, str]] = {
    "met": ("same", "the change's interval lies within {margin:g} %"),
    "regressed": ("worse", "the whole interval lies beyond {margin:g} % on the worse side"),
    "too_good": ("better", "the whole interval lies beyond {margin:g} % on the better side"),
    "inconclusive": ("inconclusive", "the interval straddles {margin:g} %: measure longer"),
}
SIGNS: dict[Outcome, str] = {"same": "=", "better": "✓", "worse": "✗", "failed": "✗"}
# What must be alike for a change to be the code's, or the environment's.
ALIKE = (("machine", "machine"), ("axes", "axes"), ("setting", "rounds, threads or clock"))
Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One figure of two runs. ratio: new over old, with the interval of both; None where they are not compared."""

    subject: str
    metric: str
    unit: str
    old: float | None
    new: float | None
    ratio: Estimate | None
    outcome: Outcome
    reason: str


def _estimate(row: Row) -> Estimate:
    """The row's figure as something that has a ratio: of a difference in percent, what it stands for."""
    percent = row["unit"] == "%"
    value, low, high = (1 + row[name] / 100 if percent else row[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, row["unit"])


def _change(old: Row | None, new: Row | None, gate_percent: float) -> Change:
    row = new or old
    assert row is not None  # noqa: S101 - one of the two is there

    def of(outcome: Outcome, reason: str, found: Estimate | None = None) -> Change:
        before, after = (one["value"] if one else None for one in (old, new))
        return Change(row["subject"], row["metric"], row["unit"], before, after, found, outcome, reason)

    if new is not None and new["status"] in ("failed", "error", "out_of_memory"):
        return of("failed", f"{new['status']} in the newer run")
    if new is None or new["value"] is None:
        return of("not_compared", "not measured in the newer run")
    if old is None or old["value"] is None:
        return of("not_compared", "not measured in the older run")
    for name, words in ALIKE:
        if old[name] and new[name] and old[name] != new[name]:
            return of("not_compared", f"other {words}: {old[name]}, then {new[name]}")
    older, newer = _estimate(old), _estimate(new)
    if min(older.low, newer.low) <= 0:
        return of("not_compared", "a figure, or its interval, is not above 0: there is no ratio")
    higher = new["higher_is_better"] if new["higher_is_better"] is not None else old["higher_is_better"]
    # what accuracy may change by is said in the config; of times and ratios, what expectations allow
    accuracy = new["metric"] == "relative_to_bf16"
    margin = gate_percent / 100 if accuracy else MARGINS[device_of(new["hardware"])]
    found = ratio(newer, older)
    verdict, _ = judge_interval(found, 1 / (1 + margin), 1 + margin, bool(higher) and not accuracy)
    outcome, reason = OUTCOMES[verdict]
    code = (
        "" if not (old["code_sha"] and new["code_sha"]) or old["code_sha"] == new["code_sha"] else "; its code changed"
    )
    return of(outcome, reason.format(margin=100 * margin) + code, found)


def compare(old: pl.DataFrame, new: pl.DataFrame, gate_percent: float) -> list[Change]:
    """A change a figure of either run, in the newer one's order. UserError for runs of different kinds of machine."""
    kinds = (old["hardware"][0], new["hardware"][0])
    if kinds[0] != kinds[1]:
        raise UserError(f"the runs are of '{kinds[0]}' and of '{kinds[1]}': figures of two machines are never compared")
    sides = [{(row["subject"], row["metric"]): row for row in side.iter_rows(named=True)} for side in (old, new)]
    # a case that passes in one run and not in the other has other metrics there: its rows meet by subject
    for one, other in (sides, sides[::-1]):
        for (subject, metric), row in list(other.items()):
            if row["value"] is None:
                wanted = [key for key in one if key[0] == subject and one[key]["value"] is not None]
                other |= {key: row | {"metric": key[1]} for key in wanted}
                if wanted and (subject, metric) not in wanted:
                    del other[subject, metric]
    keys = list(dict.fromkeys((*sides[1], *sides[0])))
    both_absent = {key for key in keys if all(side.get(key, {"value": None})["value"] is None for side in sides)}
    return [
        _change(sides[0].get(key), sides[1].get(key), gate_percent)
        for key in keys
        # skipped in both runs, or in the only one that has it: there was nothing to compare
        if key not in both_absent or sides[1].get(key, {"status": "skipped"})["status"] != "skipped"
    ]


def table(changes: list[Change]) -> str:
    """One line a figure."""
    rows = []
    for one in changes:
        percent = [100 * (value - 1) for value in (one.ratio.value, one.ratio.low, one.ratio.high)] if one.ratio else []
        rows.append(
            (
                f"{SIGNS.get(one.outcome, '?')} {one.outcome}", one.subject, one.metric, number(one.old),
                number(one.new), one.unit, f"{percent[0]:+.2f} %" if percent else "",
                f"{percent[1]:+.2f} .. {percent[2]:+.2f}" if percent else "", one.reason,
            )
        )  # fmt: skip
    heads = ("outcome", "subject", "metric", "older", "newer", "unit", "change", "interval, %", "reason")
    return tabulate(rows, headers=heads, disable_numparse=True)


def exit_code(changes: list[Change]) -> int:
    """compare.py's: 0 all the same or better; 1 something is worse or fails; 3 something can't be told."""
    outcomes = {change.outcome for change in changes}
    if outcomes & {"worse", "failed"}:
        return EXIT_REGRESSED
    return EXIT_NOT_JUDGED if outcomes & {"inconclusive", "not_compared"} or not outcomes else EXIT_MET
