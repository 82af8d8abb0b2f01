"""What became of every case and pair, and the one-line answer, computed from the records.

RULE says when a pair pays on a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serveproof import accuracy_gates
from serveproof.report.data import Machine, PairResults
from serveproof.results import MeasureCase, Verdict

RULE = (
    "An optimization pays when at least one of its cases was verified and has a speedup interval wholly above 1, and "
    "no accuracy gate on it failed."
)
# What asks most for a look comes first; a pair is called by the first that any of its cases has.
URGENT_FIRST = ("error", "failed", "out_of_memory", "regressed", "too_good", "inconclusive", "expired", "not measured",
                "met", "absent", "passed", "skipped")  # fmt: skip


@dataclass(frozen=True)
class CaseRow:
    """One line of the verdicts table. `measured` is there only when the case passed, and so has times.

    status: a record's status, or "not measured" for a case that was verified and has no measurement.
    verified: the record of the verification says that both sides passed.
    """

    pair: str
    case: str
    tier: str
    axes: dict[str, Any]
    status: str
    reason: str
    measured: MeasureCase | None
    verdict: Verdict | None
    others: list[Verdict]
    verified: bool = False

    @property
    def pays(self) -> bool:
        """Whether this case does, its pair's accuracy gate aside."""
        speedup = self.measured.speedup if self.measured else None
        return self.verified and speedup is not None and speedup.low > 1.0

    @property
    def judged(self) -> list[Verdict]:
        """Every verdict of this case, the speedup's first."""
        return [one for one in (self.verdict, *self.others) if one is not None]

    @property
    def told(self) -> Verdict | None:
        """The verdict that asks most for a look; of equal ones the speedup's, then the optimized side's."""

        def place(one: Verdict) -> tuple[int, bool]:
            return URGENT_FIRST.index(one.verdict), one.metric.startswith("baseline")

        return min(self.judged, key=place, default=None)

    @property
    def called(self) -> list[str]:
        """Every verdict and status that this case has, as words.BADGES names them."""
        judged: list[str] = [one.verdict for one in self.judged]
        return [self.status, *judged] if self.status != "passed" else judged or ["passed"]


@dataclass(frozen=True)
class Headline:
    """How many pairs there are and what became of them; a pair can pay on one case and regress or fail on another."""

    pairs: int
    pays: list[str]
    regressed: list[str]
    failed: list[str]
    skipped: list[str]
    unfinished: list[str]

    @property
    def sentence(self) -> str:
        """The one-line answer."""
        if not self.pairs:
            return "No optimization was measured here."
        noun = "optimization pays" if len(self.pays) == 1 and self.pairs == 1 else "optimizations pay"
        text = f"{len(self.pays)} of {self.pairs} {noun} here; {len(self.regressed)} regressed"
        for names, word in ((self.failed, "failed"), (self.skipped, "skipped"), (self.unfinished, "not finished")):
            if names:
                text += f"; {len(names)} {word}"
        return text + "."


def pair_rows(machine: Machine, pair: PairResults) -> list[CaseRow]:
    """The rows of one pair: every case that was verified or measured, in the order of the records."""
    return _rows(pair, _by_subject(machine))


def _by_subject(machine: Machine) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for one in verdicts(machine):
        found.setdefault(one.subject, []).append(one)
    return found


def _rows(pair: PairResults, by_subject: dict[str, list[Verdict]]) -> list[CaseRow]:
    verified_cases = {one.case for one in (pair.verify.cases if pair.verify else []) if one.status == "passed"}

    def row(
        case: str, tier: str, axes: dict[str, Any], status: str, reason: str, measured: MeasureCase | None = None
    ) -> CaseRow:
        mine = by_subject.get(f"{pair.name}/{case}", [])
        speedup = next((one for one in mine if one.metric == "speedup"), None)
        others = [one for one in mine if one is not speedup]
        verified = case in verified_cases
        return CaseRow(pair.name, case, tier, axes, status, reason, measured, speedup, others, verified)

    found: dict[str, CaseRow] = {}
    for verified in pair.verify.cases if pair.verify else []:
        # A verified case without a measurement has no time; `passed` here would promise one.
        passed = verified.status == "passed"
        status = "not measured" if passed else verified.status
        reason = "verified; its measurement did not run or did not finish" if passed else verified.reason
        found[verified.case] = row(verified.case, verified.tier, verified.axes, status, reason)
    for case in pair.measure.cases if pair.measure else []:
        measured = case if case.status == "passed" and case.speedup is not None else None
        found[case.case] = row(case.case, case.tier, case.axes, case.status, case.reason, measured)
    return list(found.values())


def verdicts(machine: Machine) -> list[Verdict]:
    """Every verdict of the machine; none when nothing was judged."""
    return machine.judgement.verdicts if machine.judgement else []


def rows_by_pair(machine: Machine) -> dict[str, list[CaseRow]]:
    """The rows of every pair, by its name."""
    by_subject = _by_subject(machine)
    return {pair.name: _rows(pair, by_subject) for pair in machine.pairs}


def case_rows(machine: Machine) -> list[CaseRow]:
    """The rows of every pair."""
    return [row for rows in rows_by_pair(machine).values() for row in rows]


def called(rows: Sequence[CaseRow]) -> str:
    """What a pair is called: the most urgent verdict or status of its cases; one that has no case is not measured."""
    words = {word for row in rows for word in row.called}
    return min(words, key=URGENT_FIRST.index, default="not measured")


def urgency(rows: Sequence[CaseRow]) -> int:
    """The place of a pair among those that ask for a look; 0 is the most urgent."""
    return URGENT_FIRST.index(called(rows))


def other_verdicts(machine: Machine) -> list[Verdict]:
    """Verdicts on other figures than speedups, a speedup's where its row tells another, and of cases that did not run
    here."""
    shown = {id(row.verdict) for row in case_rows(machine) if row.verdict is row.told}
    elsewhere = ("perplexity/", "served/", "serving/")
    return [one for one in verdicts(machine) if id(one) not in shown and not one.subject.startswith(elsewhere)]


def gate_verdict(machine: Machine, precision: str) -> Verdict | None:
    """The accuracy gate's verdict on one precision."""
    subject = f"perplexity/{precision}"
    mine = [one for one in verdicts(machine) if one.subject == subject and one.metric == "relative_to_bf16"]
    return mine[0] if mine else None


def pair_gate(machine: Machine, pair: str) -> Verdict | None:
    """The verdict of the accuracy gates on what a pair computes in: a failed one before others; None without any."""
    gates = accuracy_gates.PAIRS.get(pair, ())
    mine = [one for one in verdicts(machine) if one.subject in gates]
    return accuracy_gates.failed(mine, gates) or (mine[0] if mine else None)


def gate_failed(gate: Verdict | None) -> bool:
    """Whether a pair may not pay for what its precision costs in accuracy."""
    return gate is not None and gate.verdict in {"regressed", "failed"}


def served_verdicts(machine: Machine, path: str) -> list[Verdict]:
    """The gate's verdicts on one way of serving: on its perplexity, and on its answers."""
    return [one for one in verdicts(machine) if one.subject == f"served/{path}"]


def rung_gates(machine: Machine) -> list[dict[str, Verdict]]:
    """For each ladder the rungs whose precision failed its gate."""
    return [accuracy_gates.rung_gates(ladder, verdicts(machine)) for ladder in machine.ladders]


def load_gates(machine: Machine) -> list[Verdict | None]:
    """For each engine under load the failed gate of its precision."""
    return [accuracy_gates.load_gate(load, verdicts(machine)) for load in machine.loads]


def headline(machine: Machine) -> Headline:
    """Count the pairs by what became of them."""
    by_pair = rows_by_pair(machine)
    regressed = {one.subject.partition("/")[0] for one in verdicts(machine) if one.verdict == "regressed"}

    def where(rule: Callable[[list[CaseRow]], bool]) -> list[str]:
        return [name for name, rows in by_pair.items() if rule(rows)]

    paying = where(lambda rows: any(row.pays for row in rows))
    return Headline(
        pairs=len(by_pair),
        pays=[name for name in paying if not gate_failed(pair_gate(machine, name))],
        regressed=[name for name in by_pair if name in regressed],
        failed=where(lambda rows: any(row.status in {"failed", "error", "out_of_memory"} for row in rows)),
        skipped=where(lambda rows: bool(rows) and all(row.status == "skipped" for row in rows)),
        unfinished=where(lambda rows: not rows or any(row.status == "not measured" for row in rows)),
    )
