"""`aisp`, compare.py and snakemake over one DAG: the same files, and nothing is measured twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from serveproof import history, results
from serveproof.tables import HISTORY_SCHEMA
from tests.workflow.conftest import Checkout, Done, error_line, modified

SMOKE = ("--configfile", "config/smoke.yaml")
PAIR = "runtime_scheduler"


def aisp(checkout: Checkout, *arguments: str) -> Done:
    return checkout.call([sys.executable, "-m", "cli.aisp", "bench", *arguments])


@pytest.fixture(scope="module")
def measured(fresh: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which one target was measured by the command line, and nothing else ran."""
    checkout = fresh.copy(tmp_path_factory.mktemp("commands") / "checkout")
    done = aisp(checkout, "run", "--targets", f"ch16:{PAIR}", "--single-gpu", *SMOKE)
    assert done.returncode == 0, done.stdout
    assert f"{PAIR}/" in done.stdout
    assert "passed" in done.stdout
    return checkout


def test_a_target_is_the_dags_own_files_and_no_more(measured: Checkout) -> None:
    assert results.read(measured.results / "cpu/pairs" / PAIR / "measure.json", results.MeasureRecord).pair == PAIR
    there = {path.name for path in (measured.results / "cpu").iterdir()}
    assert there == {"hardware.json", "pairs", "logs"}
    assert [path.name for path in (measured.results / "cpu/pairs").iterdir()] == [PAIR]
    assert not (measured.folder / "reports" / "index.html").exists()
    (run,) = runs(measured)
    assert set(history.read_run(run)["subject"]) == {f"{PAIR}/r12_slots4"}


def test_snakemake_does_not_measure_it_again(measured: Checkout) -> None:
    planned = measured.planned()
    assert f"measure_pair {PAIR}" not in planned
    assert "hardware" not in planned
    assert "measure_pair flash_sdp" in planned
    assert measured.planned("bench", pairs=f"[{PAIR}]") == []


def test_nor_does_the_command_line_itself(measured: Checkout) -> None:
    before = modified(measured.results)
    done = aisp(measured, "run", "--targets", PAIR, *SMOKE)
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in done.stdout
    assert modified(measured.results) == before


def test_what_snakemake_measured_is_not_measured_again(smoke: Checkout) -> None:
    before = modified(smoke.results)
    done = aisp(smoke, "run", "--targets", "ch16", *SMOKE)
    assert "Nothing to be done" in done.stdout
    assert modified(smoke.results) == before


def test_other_settings_measure_again_and_a_dry_run_says_so(measured: Checkout) -> None:
    before = modified(measured.results)
    words = aisp(measured, "run", "--targets", PAIR, "--iterations", "4", "--dry-run", *SMOKE)
    assert words.returncode == 0, words.stdout
    assert "rule measure_pair:" in words.stdout
    done = subprocess.run(
        [sys.executable, "-m", "cli.aisp", "bench", "run", "--targets", PAIR, "--iterations", "4", "--dry-run",
         "--json", *SMOKE],
        cwd=measured.folder, env=measured.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    plans = {Path(one["file"]).name: one["plan"] for one in json.loads(done.stdout)["files"]}
    assert plans["measure.json"] != "no update"
    assert plans["verify.json"] == plans["hardware.json"] == "no update"
    assert modified(measured.results) == before


def test_a_config_that_is_wrong_is_the_dags_own_line(measured: Checkout) -> None:
    (measured.folder / "bad.yaml").write_text("treads: 2\n")
    done = aisp(measured, "run", "--targets", PAIR, "--configfile", "bad.yaml")
    assert done.returncode == 1
    assert "unknown key 'treads'; did you mean 'threads'?" in done.stdout
    assert "Traceback" not in done.stdout
    planned = aisp(measured, "run", "--targets", PAIR, "--configfile", "bad.yaml", "--dry-run", "--json")
    assert planned.returncode == 2
    assert error_line(planned).startswith("serveproof: config/config.yaml: unknown key 'treads'")


def test_compare_runs_what_it_is_told_to_and_judges_that(measured: Checkout) -> None:
    done = measured.compare("--targets", PAIR, "--profile", "none", *SMOKE)
    assert "Nothing to be done" in done.stdout
    judged = [line for line in done.stdout.splitlines() if f"{PAIR}/" in line]
    assert done.returncode in (0, 1, 3), done.stdout
    assert judged
    assert "flash_sdp" not in done.stdout
    alone = measured.compare("--targets", f"ch16:{PAIR}")
    assert [line for line in alone.stdout.splitlines() if f"{PAIR}/" in line] == judged


def test_compare_says_which_target_is_not_there(measured: Checkout) -> None:
    assert "did you mean" in error_line(measured.compare("--targets", "flash_spd"))
    assert "nothing measured here yet of flash_sdp" in error_line(measured.compare("--targets", "flash_sdp"))


def runs(checkout: Checkout) -> list[Path]:
    return sorted((checkout.results / "history" / "cpu").glob("*"))


def test_a_run_is_noted_once(smoke: Checkout) -> None:
    (path,) = runs(smoke)
    run = pl.read_parquet(path)
    assert run.schema == pl.Schema(HISTORY_SCHEMA)
    assert set(run["run"]) == {path.stem}
    assert {"flash_sdp/causal_s1024", "paged_attention/b16_max2048", "perplexity/int8_channel"} <= set(run["subject"])
    told = json.loads((smoke.results / "cpu" / "history.json").read_text())
    assert (told["run"], told["runs"], told["steps"]) == (path.stem, 1, [])
    assert smoke.planned() == []


def test_noting_it_again_makes_no_second_run(checkout: Checkout) -> None:
    (before,) = runs(checkout)
    rows = pl.read_parquet(before)
    done = checkout.run("--cores", "all", "--forcerun", "history")
    assert done.returncode == 0, done.stdout
    (after,) = runs(checkout)
    assert after == before
    assert pl.read_parquet(after).equals(rows)


def test_clean_keeps_the_history(checkout: Checkout) -> None:
    (path,) = runs(checkout)
    done = checkout.call(["make", "clean"])
    assert done.returncode == 0, done.stdout
    assert [found.name for found in checkout.results.iterdir()] == ["history"]
    assert runs(checkout) == [path]
    assert not (checkout.folder / "reports" / "index.html").exists()


def good(run: Path, file: Path) -> str:
    """A copy of a noted run without what a busy machine let fail, whose figures two processes could not tell."""
    frame = history.read_run(run)
    frame.filter(pl.col("status") == "passed").write_parquet(file)
    return str(file)


def test_a_run_against_itself_is_the_same(smoke: Checkout, tmp_path: Path) -> None:
    (path,) = runs(smoke)
    run = good(path, tmp_path / "good.parquet")
    for command in (("--run", run, "--against", run), ("--against", "results/cpu")):
        done = smoke.compare(*command)
        # two processes of three rounds: an interval may well be wider than what counts as the same
        assert done.returncode in ((0, 3) if "--run" in command else (0, 1, 3)), done.stdout
        assert "flash_sdp/causal_s1024" in done.stdout
        assert "worse" not in done.stdout
        assert "Traceback" not in done.stdout


def test_a_slower_run_is_worse_and_code_1(smoke: Checkout, tmp_path: Path) -> None:
    """Two processes' intervals tell nothing: both runs get narrow ones here."""
    slowed = pl.col("subject") == "flash_sdp/causal_s1024"
    run = history.read_run(runs(smoke)[0])
    for name, factor in (("before", 1.0), ("after", 0.5)):
        value = pl.col("value") * pl.when(slowed).then(factor).otherwise(1.0)
        frame = run.with_columns(value=value).with_columns(low=pl.col("value") * 0.99, high=pl.col("value") * 1.01)
        frame.filter(pl.col("metric") == "speedup", pl.col("status") == "passed").write_parquet(
            tmp_path / f"{name}.parquet"
        )
    before, after = (str(tmp_path / f"{name}.parquet") for name in ("before", "after"))
    done = smoke.compare("--run", after, "--against", before)
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "✗" in line]
    assert line.split()[1:3] == ["worse", "flash_sdp/causal_s1024"]
    assert smoke.compare("--run", before, "--against", before).returncode == 0


def test_a_run_is_found_by_its_commit(checkout: Checkout) -> None:
    """Of a checkout without git the commit is told by SERVEPROOF_COMMIT; here the noted run gets one."""
    (path,) = runs(checkout)
    run = history.read_run(path).with_columns(pl.lit("1234abcd" * 5).alias("run_commit"))
    run.write_parquet(path)
    good(path, checkout.folder / "now.parquet")
    assert checkout.compare("--run", "now.parquet", "--against", "1234abcd").returncode in (0, 3)
    line = error_line(checkout.compare("--against", "feedbeef"))
    assert "no run of that commit in results/history/cpu; it has 1234abcd1234" in line
    shutil.rmtree(path.parent)
    assert "it is empty" in error_line(checkout.compare("--against", "1234abcd"))


def test_against_goes_with_nothing_that_runs(checkout: Checkout) -> None:
    line = error_line(checkout.compare("--against", "results/cpu", "--profile", "none"))
    assert line.startswith("serveproof: --profile: --against compares two runs that are there")
