"""The section on several ranks: charts that draw what the record holds, and text from a record stays text."""

from __future__ import annotations

from pathlib import Path

import msgspec

from serveproof.distributed_records import RankedRecord
from serveproof.report import ranks_charts
from serveproof.report.data import collect
from serveproof.report.render import render
from serveproof.results import write
from tests.report import fake_results
from tests.report.fake_ranks import record


def page_with(folder: Path, made: RankedRecord) -> str:
    machine = fake_results.write_machine(folder / "results" / "cpu")
    write(machine / "ranks" / f"{made.script}.json", made)
    return render([collect(machine)], fake_results.provenance())


def test_every_chart_draws_what_the_record_holds() -> None:
    drawn = {chart.title: chart for chart in ranks_charts.between(record()) + ranks_charts.experts(record())}
    assert drawn.keys() == {
        "Bandwidth between ranks", "All-reduce by size", "Other collectives by size",
        "Hand-over of the cache against recompute", "A layer of experts by imbalance",
    }  # fmt: skip
    assert [len(drawn[f"{name} by size"].rows) for name in ("All-reduce", "Other collectives")] == [2, 3]
    assert len(drawn["Bandwidth between ranks"].rows) == 2, "a rank's bandwidth to itself is no figure"
    assert "477\u00a0GB/s" in drawn["Bandwidth between ranks"].caption
    assert len(drawn["Hand-over of the cache against recompute"].rows) == 2
    empty = msgspec.structs.replace(record(), collectives=[], matrix=None, hand_overs=[], expert_layers=[])
    assert ranks_charts.between(empty) + ranks_charts.experts(empty) == []


def test_the_section_shows_statuses_figures_and_dropped_rows(tmp_path: Path) -> None:
    page = page_with(tmp_path, record())
    section = page[page.index('id="m0-ranks"') : page.index('id="m0-profiles"')]
    assert 'href="#ranks"' in page
    for told in (
        "dead_rank_is_noticed",
        "not within 10 s",
        "of_link",
        "0123, found the same on every rank",
        "18 NVLinks",
    ):
        assert told in section, told
    assert '<tr class="bad"><th scope="row">zipf</th>' in section, "dropped rows stand out"


def test_text_of_a_record_stays_text(tmp_path: Path) -> None:
    page = page_with(tmp_path, record(fake_results.HOSTILE))
    assert "<script>window.stolen" not in page
    assert "<img src=x" not in page


def test_a_broken_record_is_absent_with_its_reason(tmp_path: Path) -> None:
    machine = fake_results.write_machine(tmp_path / "results" / "cpu")
    (machine / "ranks").mkdir()
    (machine / "ranks" / "multi_gpu_validation.json").write_text("{")
    found = collect(machine)
    assert found.ranked == []
    assert any(one.what == "Several ranks: multi_gpu_validation" for one in found.absent)
