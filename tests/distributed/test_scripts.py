"""The scripts of several ranks over two gloo ranks, small; and what they say when something does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from serveproof.distributed import expert_serving
from serveproof.distributed.equality import config_for
from serveproof.distributed_records import RankedRecord
from serveproof.engine.loader import random_model
from serveproof.engine.parallel import SINGLE
from serveproof.pairs import ROOT
from tests import forked
from tests.distributed.conftest import refused


def record_of(out: Path, script: str, *arguments: object) -> RankedRecord:
    command = ("--threads", "2", "--out", out, *arguments)
    for code, output in forked.run(f"scripts/{script}.py", [command] * 2, out.parent):
        assert code == 0, output
    return msgspec.json.decode(out.read_bytes(), type=RankedRecord)


def test_replicas_are_equal_and_a_corrupted_page_is_caught(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "r.json", "symmetric_memory_inference", "--model", "tiny", "--validate", "--tokens", "28"
    )
    found = {case.case: case for case in record.cases}
    assert {case.status for case in record.cases} == {"passed"}
    assert found["pages_equal_after_every_step"].axes["transport"] == "gloo"
    assert found["pages_equal_after_every_step"].axes["pages_put"] > 100
    assert "found [[], [" in found["corrupted_page_is_caught"].reason
    assert found["replica_skew"].figures["p99"].estimate.value > 0
    assert any("no symmetric memory: symmetric memory is mapped between GPUs" in note for note in record.notes)


def test_one_rank_says_what_is_missing(tmp_path: Path) -> None:
    ((code, output),) = forked.run("scripts/symmetric_memory_inference.py", [("--model", "tiny")], tmp_path)
    assert code == 0
    assert "skipped: replicas: one rank has nowhere to keep a copy: start two" in output


def test_by_itself_it_starts_its_own_ranks(tmp_path: Path) -> None:
    """`python scripts/symmetric_memory_inference.py --validate`, word for word but for its length and its record."""
    out = tmp_path / "r.json"
    command = [
        sys.executable,
        "scripts/symmetric_memory_inference.py",
        "--validate",
        "--tokens",
        "8",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANK", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = msgspec.json.decode(out.read_bytes(), type=RankedRecord)
    assert (record.world, record.device) == (2, "cpu")
    statuses = {case.case: case.status for case in record.cases}
    assert statuses["corrupted_page_is_caught"] == statuses["pages_equal_after_every_step"] == "passed"


def test_hand_over_gives_the_tokens_of_recompute(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "h.json", "disaggregated_serving", "--model", "tiny", "--prompts", "70", "--runs", "3",
        "--tokens", "5",
    )  # fmt: skip
    (point,) = record.hand_overs
    # tiny: 4 layers, k and v, 16 tokens, 4 heads of 32, float32; pages up to the one with the last token
    assert point.bytes == 4 * (4 * 2 * 16 * 4 * 32 * 4)
    assert point.equal
    assert point.speedup.low <= point.speedup.value <= point.speedup.high
    assert {case.case: case.status for case in record.cases} == {
        "corrupted_page_is_caught": "passed",
        "hand_over_70": "passed",
    }


def test_hand_over_takes_pairs(tmp_path: Path) -> None:
    line = refused("scripts/disaggregated_serving.py", [("--model", "tiny")] * 3, tmp_path)
    assert "3 ranks: a prefill and a decode worker make a pair; start an even number" in line


def test_experts_by_imbalance(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "e.json", "moe_performance_benchmark", "--tokens", "48", "--traffics", "uniform",
        "adversarial", "--samples", "3", "--calls", "2",
    )  # fmt: skip
    ways = {(one.traffic, one.placement, one.batching) for one in record.expert_layers}
    assert len(ways) == 8
    even, odd = (
        next(one for one in record.expert_layers if one.traffic == kind) for kind in ("uniform", "adversarial")
    )
    assert odd.imbalance > 2 * even.imbalance
    # two experts get everything: at worst both are one rank's
    assert 1 <= odd.rank_imbalance <= 2
    assert all(one.exchange_share > 0 and one.error < 1e-4 for one in record.expert_layers)


def test_a_decoder_with_experts_drops_nothing(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "s.json", "synthetic_moe_inference_benchmark", "--traffics", "adversarial", "--runs", "2",
        "--requests", "3", "--tokens", "4",
    )  # fmt: skip
    (load,) = record.expert_loads
    assert (load.dropped, load.active_experts) == (0, 4), "two experts in each of two layers"
    assert load.rows == load.computed > 0
    assert "tokens equal to one rank's" in record.cases[0].reason


def test_a_dropped_row_would_be_counted() -> None:
    """A batching with a capacity, as GShard's: what is beyond it is not computed, and the count says so."""
    model = random_model(config_for(1, experts=True), 1, torch.float32, "cpu", SINGLE)
    counted = expert_serving.follow(model, "adversarial", 0, torch.device("cpu"))
    for layer in expert_serving.layers_of(model):
        inner = layer.batching
        layer.batching = lambda x, a, b, ends, inner=inner: inner(x, a, b, ends.clamp(max=5))
    with torch.inference_mode():
        model.full(torch.arange(12).view(1, 12))
    assert int(counted.chosen_E.sum()) == 3 * 12 * 2
    assert int(counted.computed) == 3 * 5


@pytest.mark.parametrize("script", ["moe_performance_benchmark", "synthetic_moe_inference_benchmark"])
def test_a_model_without_experts_is_told(script: str, tmp_path: Path) -> None:
    line = refused(f"scripts/{script}.py", [("--model", "tiny")] * 2, tmp_path)
    assert "--model tiny: has no experts" in line
