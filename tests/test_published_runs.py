"""What the H200s' expectations are worth: runs of the same code that pass them, and runs with 5 % put in that don't.

The records are in reports/published/*/again and */slowed_5_percent; docs/h200.md says when and how they were made. A
pair whose code has changed since its expectation was made has expired, here as anywhere, and asks for new runs.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from serveproof import expectations
from serveproof.pairs import ROOT
from serveproof.results import Judgement, MeasureRecord, Verdict, read

KEYS = ("h200", "2x_h200")


def records(key: str, run: str) -> list[MeasureRecord]:
    found = sorted((ROOT / "reports/published" / key / run / "pairs").glob("*/measure.json"))
    return [read(path, MeasureRecord) for path in found]


def judged(key: str, run: str) -> list[Verdict]:
    """The verdicts by today's expectations, without those of what has expired."""
    known = expectations.load(ROOT / f"expectations_{key}.json")
    return [one for one in expectations.judge_pairs(records(key, run), known, key) if one.verdict != "expired"]


@pytest.mark.parametrize("key", KEYS)
def test_the_same_code_again_passes(key: str) -> None:
    assert {one.verdict for one in judged(key, "again")} == {"met"}


@pytest.mark.parametrize("key", KEYS)
def test_5_percent_put_in_fails_and_the_side_without_it_passes(key: str) -> None:
    verdicts = judged(key, "slowed_5_percent")
    by_case = defaultdict(set)
    for one in verdicts:
        if one.metric.startswith("baseline"):
            assert one.verdict == "met", f"{one.subject}: nothing was put into the baseline"
        by_case[one.subject].add(one.verdict)
    assert not {subject for subject, found in by_case.items() if "regressed" not in found}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("run", "percent"), [("again", 0.0), ("slowed_5_percent", 5.0)])
def test_the_records_say_what_was_put_in_and_have_every_case(key: str, run: str, percent: float) -> None:
    found = {(record.pair, case.case): case for record in records(key, run) for case in record.cases}
    assert {case.timing.injected_slowdown_percent for case in found.values() if case.timing} == {percent}
    assert {case.status for case in found.values()} == {"passed"}
    known = expectations.load(ROOT / f"expectations_{key}.json").pairs
    assert set(found) == {(pair, case) for pair, cases in known.items() for case in cases}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("run", ["again", "slowed_5_percent"])
def test_the_published_judgement_is_of_these_records(key: str, run: str) -> None:
    told = read(ROOT / "reports/published" / key / run / "judgement.json", Judgement).verdicts
    measured = {f"{record.pair}/{case.case}" for record in records(key, run) for case in record.cases}
    assert {one.subject for one in told} == measured
