"""Bad input of several ranks: one line, from rank 0, every rank ends, none hangs."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import torch

from serveproof.distributed.group import disagreement, miscounted, sha_of
from tests import forked
from tests.distributed.conftest import Started, ended, lines_of, refused
from tests.forked import ROOT

VALIDATION = "scripts/multi_gpu_validation.py"


def test_a_world_that_does_not_divide_the_heads(start: Started, tmp_path: Path) -> None:
    shape = json.loads((ROOT / "config/models/tiny.json").read_text())
    shape |= {"num_attention_heads": 9, "num_key_value_heads": 3}
    (tmp_path / "odd.json").write_text(json.dumps(shape))
    code, output = ended(start("scripts/inference_serving_multigpu.py", "--model", tmp_path / "odd.json"))
    assert code != 0
    (line,) = lines_of(output)
    assert "num_attention_heads 9 does not divide by 2 ranks; start a number of ranks that divides it" in line


def test_experts_that_do_not_divide(tmp_path: Path) -> None:
    line = refused("scripts/moe_performance_benchmark.py", [("--traffics", "zipf")] * 3, tmp_path)
    assert "num_experts 16 does not divide by 3 ranks" in line


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("moe_performance_benchmark.py --tokens 0", "--tokens is 0; give 1 or more"),
        ("synthetic_moe_inference_benchmark.py --layers 99", "--layers 99: moe-tiny has 2"),
        ("multi_gpu_validation.py --speed-model nowhere", "--model nowhere: no such directory"),
    ],
)
def test_an_argument_that_can_not_be(command: str, told: str, tmp_path: Path) -> None:
    script, *arguments = command.split()
    assert told in refused(f"scripts/{script}", [arguments] * 2, tmp_path)


def test_counts_are_at_least_one() -> None:
    assert miscounted({"seed": 0, "layers": 0, "validate": False, "model": "tiny", "sizes": [1, 4], "runs": 1}) == ""
    assert miscounted({"sizes": [4, 0]}) == "--sizes is 0; give 1 or more"
    assert miscounted({"max_running": -1}) == "--max-running is -1; give 1 or more"
    assert miscounted({"layers": -1}) == "--layers is -1; give 0 or more"


@pytest.mark.skipif(torch.cuda.is_available(), reason="every rank would have a GPU")
def test_a_rank_without_a_gpu(tmp_path: Path) -> None:
    line = refused(VALIDATION, [("--key", "2x_h200")] * 2, tmp_path)
    assert "rank 0 has no GPU: 0 visible on its machine; start at most 0 ranks there" in line


def test_ranks_that_disagree_on_the_config(tmp_path: Path) -> None:
    line = refused(VALIDATION, [("--seed", seed) for seed in (7, 8)], tmp_path)
    assert "seed is 7 on rank 0 and 8 on rank 1; start every rank with the same arguments" in line


def test_a_port_in_use(start: Started) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        master = f"127.0.0.1:{taken.getsockname()[1]}"
        launcher = ("--nodes", "2", "--node-rank", "0", "--master", master)
        code, output = ended(start(VALIDATION, ranks=1, launcher=launcher))
    assert code == 2
    (line,) = lines_of(output)
    assert f"port {master.partition(':')[2]} of node 0 can't be had" in line
    assert "choose another with --master" in line


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        (("--nodes", "2"), "srun did not start this; 2 nodes are a SLURM job: set distributed.nodes and validation."),
        (("--nodes", "2", "--master", "nowhere"), "--master nowhere: give node 0's HOST:PORT"),
        (("--nodes", "2", "--node-rank", "2", "--master", "127.0.0.1:29999"), "--node-rank 2: nodes are numbered"),
    ],
)  # fmt: skip
def test_a_meeting_place_that_can_not_be(start: Started, launcher: tuple[str, ...], told: str) -> None:
    code, output = ended(start(VALIDATION, ranks=1, launcher=launcher))
    assert code == 2
    assert told in lines_of(output)[0]


def test_a_rank_that_never_comes_ends_the_waiting(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text("from serveproof.distributed.group import joined\nwith joined('cpu', {}, limit_s=3): pass\n")
    begun = forked.start(str(script), [()], tmp_path, world=2)
    started = time.monotonic()
    ((code, said),) = forked.ended(begun, limit_s=45)
    assert code == 2
    assert time.monotonic() - started < 45
    assert "rank 1 did not come within 3 s" in said


def test_the_hash_and_the_key_that_differs() -> None:
    one = {"seed": 1, "model": "a"}
    assert sha_of(one) == sha_of({"model": "a", "seed": 1})
    assert sha_of(one) != sha_of({**one, "seed": 2})
    assert disagreement([one, dict(one)]) == ""
    assert "model is 'a' on rank 0 and None on rank 2" in disagreement([one, dict(one), {"seed": 1}])
