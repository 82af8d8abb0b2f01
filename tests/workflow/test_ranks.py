"""Several ranks in the DAG: planned as the config says, with shapes and devices as the machine has them."""

from __future__ import annotations

import pytest

from tests.workflow.conftest import Checkout, error_line

SCRIPTS = 5


def commands(checkout: Checkout, **settings: str) -> list[str]:
    done = checkout.run("--dry-run", "--printshellcmds", "--cores", "2", **settings)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "start_ranks.py" in line and "--nodes" in line]


@pytest.mark.parametrize(
    ("hardware", "ranks", "told", "also"),
    [
        ("cpu", "auto", "--ranks 2", ""),
        ("2x_h200", "auto", "--ranks 2", "--model llama-8b"),
        ("8x_h200", "auto", "--ranks 8", "--model qwen3-30b-a3b"),
        ("cpu", "4", "--ranks 4", ""),
    ],
)
def test_a_rank_a_gpu_and_two_on_a_cpu(fresh: Checkout, hardware: str, ranks: str, told: str, also: str) -> None:
    found = commands(fresh, hardware=hardware, validation=f"{{ranks: {ranks}}}")
    assert len(found) == SCRIPTS
    assert all(told in line and "--judged-later" in line for line in found)
    assert any(also in line for line in found)
    assert not any("--device cpu" in line for line in found)


def test_with_one_gpu_what_needs_two_ranks_runs_on_the_cpu(fresh: Checkout) -> None:
    found = commands(fresh, hardware="h200", validation="{ranks: auto}")
    on_cpu = [line for line in found if "--device cpu" in line]
    assert len(on_cpu) == 3
    assert all("--ranks 2" in line for line in on_cpu)
    assert all("--ranks 1" in line for line in found if line not in on_cpu)


@pytest.mark.parametrize(("hardware", "ranks"), [("cpu", 1), ("h200", 1), ("2x_h200", 2)])
def test_several_nodes_are_a_task_each(fresh: Checkout, hardware: str, ranks: int) -> None:
    """A rank a GPU, or one on a node's CPU."""
    found = commands(fresh, hardware=hardware, validation="{ranks: auto, nodes: 2}")
    assert len(found) == SCRIPTS
    assert all("srun --nodes=2 --ntasks=2 --cpus-per-task=2 --kill-on-bad-exit=1" in line for line in found)
    assert all("--nodes 2" in line for line in found)
    assert all(f"--ranks {ranks} " in line for line in found)
    assert not any("--device cpu" in line for line in found)


def test_several_nodes_without_a_cluster_are_one_line(fresh: Checkout) -> None:
    line = error_line(fresh.run("--cores", "2", validation="{ranks: auto, nodes: 2}"))
    assert "key 'validation.nodes': 2 nodes are a SLURM job; set 1, or run with --profile profiles/slurm" in line


def test_none_runs_none(fresh: Checkout) -> None:
    assert commands(fresh) == []


def test_one_rank_is_no_number_for_several(fresh: Checkout) -> None:
    line = error_line(fresh.run("--dry-run", "--cores", "2", validation="{ranks: 1}"))
    assert "validation.ranks" in line
