"""The report's topic History: trends with intervals, the steps with their commits, and hostile names as text."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from serveproof import history, steps
from serveproof.report import history_charts
from serveproof.report.data import History, collect, collect_history
from serveproof.report.render import render
from tests.fake_history import commit, noise, runs
from tests.report import fake_results


def made(frame: pl.DataFrame, key: str = "cpu") -> History:
    return History(key, frame, *steps.of_history(frame))


def stepped() -> History:
    slower = noise(16, 0.002, seed=1)
    slower[9:] *= 0.95
    return made(runs({"toy/moved": slower, "toy/stays": noise(16, 0.002, seed=2), "other/a": noise(16, 0.002, seed=3)}))


def page(tmp_path: Path, *histories: History) -> str:
    machine = collect(fake_results.write_machine(tmp_path / "results" / "cpu"))
    return render([machine], fake_results.provenance(), histories)


def topic(text: str) -> str:
    return text.partition(' id="history" ')[2].partition("</section>")[0]


def test_a_step_names_its_commit_in_words_and_signs(tmp_path: Path) -> None:
    text = page(tmp_path, stepped())
    section = topic(text)
    assert '<a href="#history">History</a>' in text
    assert "1 step in 3 figures with 6 runs or more: 1 worse, 0 better." in section
    assert commit(9)[:12] in section
    assert commit(8)[:12] in section
    assert "▼" in section
    assert "neither its code nor the environment" in section


def test_pairs_are_drawn_with_intervals_those_that_stepped_first() -> None:
    view = history_charts.view(stepped())
    assert [chart.title for chart in view.charts] == ["toy: speedup over the runs", "other: speedup over the runs"]
    assert len(view.charts[0].rows) == 32
    assert view.charts[0].headings == ["run", "case", "speedup, x", "low", "high"]
    assert "A dashed line marks the first run after a step: 1 here." in view.charts[0].caption
    assert "moved from" in view.charts[0].alt_text


def test_other_figures_are_drawn_where_they_stepped() -> None:
    times = {"metric": "optimized_ms", "unit": "ms", "higher_is_better": False}
    moved = noise(16, 0.002, seed=1)
    moved[8:] *= 1.2
    still = made(runs({"toy/a": noise(16, 0.002, seed=2)}, **times))
    assert history_charts.view(still).charts == []
    (chart,) = history_charts.view(made(runs({"toy/a": moved}, **times))).charts
    assert chart.title == "toy: optimized ms over the runs"


@pytest.mark.parametrize(
    ("count", "told"),
    [(1, "One run is noted"), (4, "No figure was measured 6 times alike yet"), (8, "No step in 1 figures")],
)
def test_what_can_not_be_said_yet_is_said(count: int, told: str) -> None:
    assert history_charts.view(made(runs({"toy/a": noise(count, 0.01, seed=0)}))).sentence.startswith(told)


def test_without_a_run_the_topic_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, made(runs({"toy/a": noise(0, 0.01, seed=0)})))
    assert '<a href="#history" class="empty-topic">History' in text
    assert "No run before this one" in topic(text)


def test_two_settings_of_one_case_are_two_lines() -> None:
    both = runs({"toy/a": noise(8, 0.01, seed=0)}, setting=lambda number: f"{5 if number < 4 else 3} processes")
    (chart,) = history_charts.view(made(both)).charts
    assert {row[1] for row in chart.rows} == {"a, 5 processes, Some CPU", "a, 3 processes, Some CPU"}


def test_many_pairs_stay_a_small_page() -> None:
    view = history_charts.view(made(runs({f"pair{number}/a": noise(2, 0.01, seed=number) for number in range(60)})))
    assert (len(view.charts), view.left_out) == (history_charts.MOST_DRAWN, 60 - history_charts.MOST_DRAWN)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = fake_results.HOSTILE
    moved = noise(12, 0.002, seed=1)
    moved[6:] *= 0.9
    hostile = made(runs({f"{text}/{text}": moved}, setting=text, machine=text, commit=text, metric="speedup"), key=text)
    assert hostile.steps
    rendered = page(tmp_path, hostile)
    assert "<script>window.stolen" not in rendered
    assert "<img src=x" not in rendered


def test_it_is_read_from_beside_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    assert collect_history(folder).runs.is_empty()
    history.append(tmp_path / "results" / "history" / "cpu", runs({"toy/a": noise(1, 0.01, seed=0)}))
    found = collect_history(folder)
    assert (found.key, found.runs.height, found.steps, found.tested) == ("cpu", 1, [], 0)
