"""The section on several ranks: charts that draw what the record holds, and text from a record stays text."""

from __future__ import annotations

from pathlib import Path

import msgspec

from serveproof.distributed_records import (
    CollectivePoint,
    ExpertLayerPoint,
    ExpertLoadPoint,
    HandOverPoint,
    PeerMatrix,
    RankedCase,
    RankedFigure,
    RankedRecord,
)
from serveproof.report import ranks_charts
from serveproof.report.data import collect
from serveproof.report.render import render
from serveproof.results import Estimate, write
from tests.report import fake_results


def near(value: float, unit: str = "ms") -> Estimate:
    return Estimate(value, 0.9 * value, 1.1 * value, unit)


def record(text: str = "") -> RankedRecord:
    return RankedRecord(
        script="multi_gpu_validation",
        hardware="2x_h200",
        machine=f"NVIDIA H200{text}",
        device="cuda",
        world=2,
        nodes=1,
        backend="nccl",
        code_sha="sha",
        config={},
        config_sha="0123",
        cases=[
            RankedCase("all_reduce", {}, "passed", f"exact on 2 ranks{text}"),
            RankedCase("peer_bandwidth", {}, "passed", "", {"of_link": RankedFigure(near(0.93, "fraction"), True)}),
            RankedCase("dead_rank_is_noticed", {}, "failed", "not within 10 s"),
            RankedCase("tensor_parallel_speed", {}, "skipped", "no model was named"),
        ],
        provenance=fake_results.provenance(),
        collectives=[CollectivePoint("all_reduce", by, 8192, near(7, "us"), 1e9) for by in ("nccl", "push")]
        + [CollectivePoint("all_to_all", "nccl", size, near(9, "us"), 2e9) for size in (4096, 8192, 16384)],
        matrix=PeerMatrix([[None, 4.4e11], [4.5e11, None]], 4.77e11, [f"GPU 0: 18 NVLinks active{text}"], "copies"),
        hand_overs=[HandOverPoint(512, 2**20, "symmetric memory", near(1), near(2), near(8), near(4, "x"), True)],
        expert_layers=[
            ExpertLayerPoint(kind, "at_tokens", "grouped", much, 1.2, near(3), 0.4, 1e5, 0.0)
            for kind, much in (("uniform", 1.3), ("zipf", 4.1))
        ],
        expert_loads=[ExpertLoadPoint("zipf", 8, 96, near(400, "tokens/s"), 4.1, 1.4, 16, 6128, 6100, 28)],
        notes=[f"a note{text}"],
    )  # fmt: skip


def page_with(folder: Path, made: RankedRecord) -> str:
    machine = fake_results.write_machine(folder / "results" / "cpu")
    write(machine / "ranks" / f"{made.script}.json", made)
    return render([collect(machine)], fake_results.provenance())


def test_every_chart_draws_what_the_record_holds() -> None:
    drawn = {chart.title: chart for chart in ranks_charts.of(record())}
    assert drawn.keys() == {
        "Bandwidth between ranks", "All-reduce by size", "Other collectives by size",
        "Hand-over of the cache against recompute", "A layer of experts by imbalance",
    }  # fmt: skip
    assert [len(drawn[f"{name} by size"].rows) for name in ("All-reduce", "Other collectives")] == [2, 3]
    assert len(drawn["Bandwidth between ranks"].rows) == 2, "a rank's bandwidth to itself is no figure"
    assert "477\u00a0GB/s" in drawn["Bandwidth between ranks"].caption
    assert len(drawn["Hand-over of the cache against recompute"].rows) == 2
    empty = msgspec.structs.replace(record(), collectives=[], matrix=None, hand_overs=[], expert_layers=[])
    assert ranks_charts.of(empty) == []


def test_the_section_shows_statuses_figures_and_dropped_rows(tmp_path: Path) -> None:
    page = page_with(tmp_path, record())
    section = page[page.index('id="m0-ranks"') : page.index('id="m0-accuracy"')]
    assert 'href="#m0-ranks"' in page
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
