"""Runs as rows: what is noted, that nothing is noted twice, and how a run is found again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import polars as pl
import pytest

from serveproof import history
from serveproof.comparison import Found
from serveproof.errors import UserError
from serveproof.pairs import ROOT
from serveproof.results import MeasureCase, Provenance
from serveproof.tables import HISTORY_SCHEMA
from tests.fake_history import noise, runs
from tests.test_expectations import passed, record
from tests.test_load_judging import tenants

H200 = ROOT / "reports" / "published" / "h200"
ORIGIN = Provenance(
    "a" * 40, False, "envs/cpu.txt", "0" * 64, {"torch": "2.13.0"}, "", "x", "2026-01-01T10:00:00+00:00"
)


def rows(*cases: MeasureCase, **changes: object) -> pl.DataFrame:
    measured = record(*cases, **{"provenance": ORIGIN} | changes)
    return history.rows_of(Found([measured], [], [], None), "Some CPU")


def test_a_run_of_an_h200_has_every_figure_that_is_judged() -> None:
    run = history.of_folder(H200)
    assert run.schema == pl.Schema(HISTORY_SCHEMA)
    assert set(run["hardware"]) == {"h200"}
    per_pair = run.filter(pl.col("subject") == "flash_sdp/causal_s8192_d128")
    assert per_pair["metric"].to_list() == ["speedup", "baseline_ms", "optimized_ms"]
    assert run.filter(pl.col("status") == "passed").select((pl.col("low") <= pl.col("value")).all()).item()
    assert run.filter(pl.col("subject").str.starts_with("serving/")).height
    assert history.named(str(H200), "h200").equals(run)


def test_on_a_cpu_only_ratios_are_noted() -> None:
    assert rows(passed(2.0))["metric"].to_list() == ["speedup"]


def test_what_did_not_pass_is_a_row_without_a_figure() -> None:
    (row,) = rows(MeasureCase("a", "cpu", {}, "out_of_memory", "no room")).iter_rows(named=True)
    assert (row["status"], row["value"]) == ("out_of_memory", None)


def test_a_load_test_is_noted_by_what_is_compared() -> None:
    run = history.rows_of(Found([], [], tenants(), None), "chip")
    (row,) = run.iter_rows(named=True)
    assert (row["subject"], row["metric"]) == ("serving/multi_tenant", "modest_ttft_p90_first_come_over_fair")
    assert row["value"] == pytest.approx(10)


def test_the_name_tells_date_commit_and_code() -> None:
    one = rows(passed(2.0))["run"][0]
    assert one.startswith("20260101T100000Z_aaaaaaaaaaaa_")
    assert rows(passed(2.0), code_sha="other")["run"][0] != one
    dirty = Provenance("b" * 40, True, "l", "s", {}, "", "x", ORIGIN.date_utc)
    assert "_bbbbbbbbbbbb+_" in rows(passed(2.0), provenance=dirty)["run"][0]


@pytest.mark.parametrize("commit", ["unknown (not a git checkout)", "../../etc", ""])
def test_a_commit_that_is_none_names_no_path(commit: str) -> None:
    origin = Provenance(commit, False, "l", "s", {}, "", "x", ORIGIN.date_utc)
    name = rows(passed(2.0), provenance=origin)["run"][0]
    assert name.split("_")[1] == "unknown"
    assert "/" not in name


def test_noting_the_same_results_again_changes_nothing(tmp_path: Path) -> None:
    written = {history.append(tmp_path, rows(passed(2.0))).stat().st_mtime_ns for _ in range(2)}
    assert len(written) == 1
    assert history.load(tmp_path).height == 1
    later = msgspec.structs.replace(ORIGIN, date_utc="2026-01-02T10:00:00+00:00")
    history.append(tmp_path, rows(passed(2.1), provenance=later))
    assert history.load(tmp_path)["value"].to_list() == [2.0, 2.1]


def test_an_empty_history_is_an_empty_table(tmp_path: Path) -> None:
    assert history.load(tmp_path / "none").is_empty()


def test_a_published_folder_has_its_own_history(tmp_path: Path) -> None:
    assert history.folder_of(tmp_path / "results" / "cpu") == tmp_path / "results" / "history" / "cpu"
    assert history.folder_of(tmp_path / "h200") == tmp_path / "h200" / "history"


def test_a_broken_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"x\.parquet: not a run of the history .*the other runs stay"):
        history.load(tmp_path)
    pl.DataFrame({"run": ["a"]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: not a run"):
        history.load(tmp_path)


def noted(root: Path) -> pl.DataFrame:
    """Three runs of a history under a root."""
    every = runs({"toy/a": noise(3, 0.01, seed=0)})
    for name in every["run"].to_list():
        history.append(root / "results" / "history" / "cpu", every.filter(pl.col("run") == name))
    return every


def test_a_commit_finds_its_newest_run(tmp_path: Path) -> None:
    every = noted(tmp_path)
    assert history.named("0001cccc", "cpu", tmp_path)["run"].to_list() == ["run0001"]
    again = every.filter(pl.col("run") == "run0000").with_columns(
        run=pl.lit("later"), run_utc=pl.lit("2027-01-01T00:00:00+00:00")
    )
    history.append(tmp_path / "results" / "history" / "cpu", again)
    assert history.named("0000", "cpu", tmp_path)["run"].to_list() == ["later"]


def test_a_name_that_git_knows_is_its_commit(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    run = runs({"toy/a": noise(1, 0.01, seed=0)}, run_commit=head)
    history.append(tmp_path / "results" / "history" / "cpu", run)
    assert history.named("v1", "cpu", tmp_path).equals(run)
    assert history.named("HEAD", "cpu", tmp_path).equals(run)


@pytest.mark.parametrize("name", ["feedbeef", "no-such", "--all", "ab"])
def test_what_is_not_there_says_what_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is empty"):
        history.named(name, "cpu", tmp_path)
    noted(tmp_path)
    with pytest.raises(UserError, match="it has 0000cccccccc, 0001cccccccc, 0002cccccccc"):
        history.named(name, "cpu", tmp_path)


def test_a_judgement_is_a_run_too() -> None:
    run = history.named(str(H200 / "judgement.json"), "h200")
    whole = history.of_folder(H200)
    both = run.join(whole, on=["subject", "metric"])
    assert both.height > 20
    assert (both["value"] - both["value_right"]).abs().max() == 0
