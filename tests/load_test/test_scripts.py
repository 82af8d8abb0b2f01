"""The load test and the sweep as a user runs them, against a server whose slots and times are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from serveproof.errors import UserError
from serveproof.load_records import LoadRecord, SweepRecord
from serveproof.load_test import options, server_process
from serveproof.model_names import SHAPES
from serveproof.results import read
from serveproof.tables import REQUESTS_SCHEMA, TELEMETRY_SCHEMA

ROOT = Path(__file__).resolve().parents[2]
# four slots, each a request of 20 + 3 x 10 ms: 80 requests a second
SLOTS_PER_S = 4 / 0.05
pytestmark = pytest.mark.timed


@pytest.fixture(autouse=True)
def fake_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model directory for a server that is the null server."""
    monkeypatch.setattr(server_process, "SERVER_COMMAND", (sys.executable, "-m", "tests.load_test.fake_server"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 1000}))
    return model


@pytest.fixture
def call(load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a script's main with these arguments."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        load_script(name).main()

    return run


def small(model: Path, folder: Path) -> tuple[object, ...]:
    return ("--model", model, "--prompts", "fixed:8", "--outputs", "fixed:4", "--slo", "200:50", "--out-folder", folder,
            "--timeout", 10, "--log", folder / "log")  # fmt: skip


def test_all_scenarios_are_recorded(
    call: Callable[..., None], fake_server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call("inference_server_load_test", *small(fake_server, out), "--duration", 2, "--rate", SLOTS_PER_S,
         "--price-per-hour", 3.6)  # fmt: skip
    told = capsys.readouterr().out
    records = {name: read(out / f"{name}.json", LoadRecord) for name in
               ("steady", "bursty", "overload", "multi_tenant", "long_prompts")}  # fmt: skip
    assert all(name in told for name in records)
    steady = records["steady"].runs[0]
    assert steady.valid, steady.invalid_reason
    assert steady.endings == {"ok": steady.requests}
    assert steady.offered_per_s == pytest.approx(0.6 * SLOTS_PER_S, rel=0.3)
    assert steady.ttft
    assert 18 <= steady.ttft.p50.value < 60
    assert steady.tpot
    assert 9 <= steady.tpot.p50.value < 15
    assert steady.tokens_per_s_per_user == pytest.approx(1e3 / steady.tpot.p50.value)
    assert steady.cost_per_million_tokens == pytest.approx(1e6 * 3.6 / 3600 / steady.output_tokens_per_s)
    assert steady.energy.joules is None
    assert steady.energy.reason
    assert steady.fairness is None
    overload = records["overload"].runs[0]
    assert overload.answered_share == 1
    assert overload.good_per_s < steady.good_per_s
    assert records["overload"].runs[0].steadiness.verdict == "not_steady"
    tenants = records["multi_tenant"].runs[0]
    assert {one.tenant for one in tenants.tenants} == {"greedy", "modest_a", "modest_b", "modest_c"}
    assert tenants.fairness
    assert "modest_ttft_p90_ms" in records["multi_tenant"].figures
    assert "modest_ttft_p90_ms" not in records["steady"].figures
    requests = pl.read_parquet(out / "long_prompts.requests.parquet")
    assert requests.schema == pl.Schema(REQUESTS_SCHEMA)
    assert set(requests["kind"]) == {"", "long"}
    own = [max(gaps) for gaps in requests.filter(pl.col("in_window") & (pl.col("kind") == ""))["gaps_ms"]]
    stall = records["long_prompts"].figures["others_stall_p90_ms"].value
    assert stall == pytest.approx(np.quantile(own, 0.9), rel=1e-3)
    assert "others_stall_p90_ms" not in records["steady"].figures
    assert requests.filter(pl.col("kind") == "long")["prompt_tokens"].to_list() == [1024]
    telemetry = pl.read_parquet(out / "overload.telemetry.parquet")
    assert telemetry.schema == pl.Schema(TELEMETRY_SCHEMA)
    assert telemetry["running"].max() == 4
    assert (telemetry["waiting"].max() or 0) > 10
    assert "tests.load_test.fake_server" in records["steady"].server_command


def test_a_fair_server_is_seen_to_be_fairer(call: Callable[..., None], fake_server: Path, tmp_path: Path) -> None:
    found = {}
    for server in ("first_come", "fair"):
        folder = tmp_path / server
        call("inference_server_load_test", *small(fake_server, folder), "--duration", 3, "--rate", SLOTS_PER_S,
             "--scenario", "multi_tenant", "--server", server)  # fmt: skip
        found[server] = read(folder / "multi_tenant.json", LoadRecord)
    modest = {name: record.figures["modest_ttft_p90_ms"].value for name, record in found.items()}
    assert modest["first_come"] > 3 * modest["fair"], modest
    fairness = {name: record.runs[0].fairness for name, record in found.items()}
    assert fairness["fair"]
    assert fairness["first_come"]
    assert fairness["fair"].jain > fairness["first_come"].jain


def test_a_bounded_queue_keeps_goodput_up_where_a_long_one_loses_it(
    call: Callable[..., None], fake_server: Path, tmp_path: Path
) -> None:
    found = {}
    for server in ("first_come", "bounded"):
        folder = tmp_path / server
        call("inference_server_load_test", *small(fake_server, folder), "--duration", 3, "--rate", SLOTS_PER_S,
             "--scenario", "overload", "--server", server)  # fmt: skip
        found[server] = read(folder / "overload.json", LoadRecord)
    runs = {name: record.runs[0] for name, record in found.items()}
    assert "--max-queue 8" in found["bounded"].server_command
    assert runs["bounded"].endings["refused"] > 50
    assert runs["bounded"].answered_share == 1
    assert runs["bounded"].good_per_s > 0.7 * SLOTS_PER_S
    assert runs["bounded"].good_per_s > 2 * runs["first_come"].good_per_s


def test_the_sweep_finds_what_the_slots_carry(
    call: Callable[..., None], fake_server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    call("load_sweep", *small(fake_server, tmp_path)[:-6], "--timeout", 10, "--log", tmp_path / "log",
         "--duration", 2, "--percentile", 0.9, "--confidence", 0.9, "--loads", 0.5, 0.8, 1.6, "--refinements", 1,
         "--out", out, "--concurrency", 8)  # fmt: skip
    record = read(out, SweepRecord)
    assert record.capacity_per_s == pytest.approx(SLOTS_PER_S, rel=0.12)
    assert record.capacity_tokens_per_s == pytest.approx(4 * SLOTS_PER_S, rel=0.12)
    assert record.highest_rate_per_s
    assert 0.5 <= record.highest_rate_per_s / SLOTS_PER_S <= 1.25
    assert len(record.points) == 4
    assert [one.rate_per_s for one in record.points] == sorted(one.rate_per_s for one in record.points)
    assert record.points[0].proven is True
    assert record.points[-1].proven is not True
    assert "highest rate that holds the SLO" in capsys.readouterr().out
    assert "that is no capacity" not in (tmp_path / "log").read_text()
    call("inference_server_load_test", *small(fake_server, tmp_path / "o"), "--duration", 1, "--capacity", out,
         "--scenario", "steady", "--runs", 3)  # fmt: skip
    steady = read(tmp_path / "o" / "steady.json", LoadRecord)
    assert steady.rate_per_s == pytest.approx(0.6 * record.capacity_per_s)
    assert [run.number for run in steady.runs] == [1, 2, 3]
    figure = steady.figures["ttft_p50_ms"]
    assert figure.low < figure.value < figure.high


def test_a_closed_loop_that_fills_no_server_is_told(
    call: Callable[..., None], fake_server: Path, tmp_path: Path
) -> None:
    """One user can have a quarter of what four slots complete: loads are shares of a capacity that is none."""
    call("load_sweep", *small(fake_server, tmp_path)[:-6], "--timeout", 10, "--log", tmp_path / "log", "--duration", 2,
         "--percentile", 0.9, "--confidence", 0.9, "--loads", 3, "--refinements", 0, "--concurrency", 1)  # fmt: skip
    said = (tmp_path / "log").read_text()
    assert "requests/s, 1 at once only" in said
    assert "that is no capacity; raise --concurrency or --duration" in said


def test_a_shape_is_named_as_the_server_names_it(call: Callable[..., None], fake_server: Path, tmp_path: Path) -> None:
    call("inference_server_load_test", *small(Path("tiny"), tmp_path / "o"), "--duration", 1, "--rate", 5,
         "--scenario", "steady")  # fmt: skip
    assert f"--model {SHAPES / 'tiny.json'}" in read(tmp_path / "o" / "steady.json", LoadRecord).server_command


def test_a_trace_is_replayed_by_its_own_clock(call: Callable[..., None], fake_server: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [f'{{"timestamp": {at}, "input_length": {9 + at % 7}, "output_length": 2}}' for at in range(0, 3000, 100)]
    trace.write_text("\n".join(lines))
    call("inference_server_load_test", *small(fake_server, tmp_path / "o"), "--duration", 2, "--trace", trace)
    requests = pl.read_parquet(tmp_path / "o" / "trace.requests.parquet")
    assert requests["intended_s"].to_list() == pytest.approx([at / 10 for at in range(20)])
    assert requests["prompt_tokens"].to_list() == [9 + at % 7 for at in range(0, 2000, 100)]


def test_a_closed_loop_can_be_asked_for(call: Callable[..., None], fake_server: Path, tmp_path: Path) -> None:
    call("inference_server_load_test", *small(fake_server, tmp_path / "o"), "--duration", 1.5, "--closed-loop", 3)
    record = read(tmp_path / "o" / "closed.json", LoadRecord)
    assert (record.rate_per_s, record.capacity_per_s) == (None, None)
    assert record.runs[0].completed_per_s == pytest.approx(3 / 0.05, rel=0.15)
    telemetry = pl.read_parquet(tmp_path / "o" / "closed.telemetry.parquet")
    assert telemetry["under_way"].max() == 3


def test_ranks_are_leased_started_and_told(
    call: Callable[..., None], fake_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased = []
    monkeypatch.setattr(options, "lease", lambda device, gpus: leased.append((device, gpus)) or nullcontext())
    call("inference_server_load_test", *small(fake_server, tmp_path / "o"), "--duration", 0.5, "--rate", 20,
         "--scenario", "steady", "--tensor-parallel", 2)  # fmt: skip
    record = read(tmp_path / "o" / "steady.json", LoadRecord)
    assert leased == [("cpu", 2)]
    assert "--tensor-parallel 2 --policy first_come" in record.server_command
    assert record.axes["tensor_parallel"] == 2


def test_a_server_that_runs_is_driven_in_chat_with_a_real_text(
    call: Callable[..., None], null_server: Callable[..., str], tmp_path: Path
) -> None:
    base = null_server(first_token_ms=20, gap_ms=10)
    call("inference_server_load_test", *small(tmp_path, tmp_path / "o")[2:], "--base-url", base, "--duration", 1,
         "--rate", 40, "--scenario", "steady", "--route", "chat", "--text", ROOT / "README.md")  # fmt: skip
    record = read(tmp_path / "o" / "steady.json", LoadRecord)
    assert (record.server, record.server_command) == ("external", "running already")
    assert record.runs[0].endings == {"ok": record.runs[0].requests}
    assert record.axes["route"] == "chat"


def test_priorities_are_sent_and_seen(call: Callable[..., None], fake_server: Path, tmp_path: Path) -> None:
    found = {}
    for server in ("first_come", "priority"):
        folder = tmp_path / server
        call("inference_server_load_test", *small(fake_server, folder), "--duration", 2, "--rate", SLOTS_PER_S,
             "--scenario", "priorities", "--server", server)  # fmt: skip
        tenants = read(folder / "priorities.json", LoadRecord).runs[0].tenants
        found[server] = {one.tenant: one.ttft_p90_ms or 0 for one in tenants}
    assert found["priority"]["urgent"] < found["first_come"]["urgent"] / 3, found
    # beside each other in one run; against the other run's, a p90 of seconds of random load is as likely below as above
    assert found["priority"]["batch"] > 3 * found["priority"]["urgent"], found


def test_bad_input_is_one_line(
    main_error: Callable[..., str], load_script: Callable[[str], ModuleType], fake_server: Path, tmp_path: Path
) -> None:
    script = load_script("inference_server_load_test")
    model = ("--model", fake_server)
    assert "one of the two" in main_error(load_script("load_sweep"), "--out", tmp_path / "sweep.json")
    assert "one of the two" in main_error(script, *model, "--base-url", "http://127.0.0.1:9")
    assert "--tensor-parallel is for" in main_error(script, "--base-url", "http://x", "--tensor-parallel", 2)
    assert "--tensor-parallel is for" in main_error(script, *model, "--tensor-parallel", 0)
    assert "there are steady" in main_error(script, *model, "--scenario", "calm")
    assert "there are first_come, fair" in main_error(script, *model, "--server", "slow", "--rate", 1)
    assert "give --capacity or --rate" in main_error(script, *model, "--server", "bounded")
    assert "--slo fast" in main_error(script, *model, "--slo", "fast")
    assert "--prompts" in main_error(script, *model, "--prompts", "fixed:x")
    assert "--closed-loop at least 1" in main_error(script, *model, "--runs", 0)
    assert "--closed-loop at least 1" in main_error(script, *model, "--closed-loop", 0)
    assert "one of the two" in main_error(script, *model, "--closed-loop", 2, "--trace", "x.csv")
    assert "the shapes are llama-1b" in main_error(script, "--model", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "vocab_size" in main_error(script, "--model", tmp_path / "empty")
    assert "is that a server" in main_error(script, "--base-url", "http://127.0.0.1:9")
    assert "not an http" in main_error(script, "--base-url", "ftp://x")


def test_without_a_model_it_takes_the_dags(
    main_error: Callable[..., str], load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python scripts/inference_server_load_test.py --duration 120`, in a checkout where nothing can be fetched."""

    def made(name: str) -> Path:
        raise UserError(f"{name} could not be made")

    script = load_script("inference_server_load_test")
    monkeypatch.setattr(script.targets, "made", made)
    assert "results/inputs/model/model.json could not be made" in main_error(script, "--duration", 120)


def test_a_server_that_dies_says_why(
    call: Callable[..., None], fake_server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        call("inference_server_load_test", *small(fake_server, tmp_path), "--server-options=--die")
    assert caught.value.code == 1
    assert "planted: no server today" in capsys.readouterr().err


def test_the_client_s_benchmark_ends_well_and_fails_when_it_must(
    call: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    call("load_client_benchmark", "--rate", 200, "--duration", 3, "--client-processes", 1)
    assert "send lag p50" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        call("load_client_benchmark", "--rate", 20000, "--duration", 0.5, "--client-processes", 1, "--tokens", 4)
    assert caught.value.code == 1
    assert "not valid" in capsys.readouterr().err
