"""What SLURM says, read; what a rule asks for; what of it a cluster can't give; what a job noted."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serveproof import results
from serveproof.cluster import check, parse, slurm, usage
from serveproof.cluster.requests import Requests, as_resources, home, need
from serveproof.cluster.slurm import Cluster, Node, Partition
from serveproof.hardware.machines import machines_of
from serveproof.pairs import ROOT

TABLE = yaml.safe_load((ROOT / "config" / "resources.yaml").read_text())
MACHINES = machines_of(
    {
        "h200": {"partition": "gpu", "cpus": 8, "gpu": 1, "gpu_model": "h200", "exclusive": "node"},
        "2x_b200": {"partition": "gpu", "cpus": 16, "gres": "gpu:b200:2"},
        "cpu": {"partition": "cpu", "cpus": 4, "account": "lab"},
    },
    threads=1,
)
NODES = [
    Node("c1", 64, 256_000, {}, ["cpu"], True),
    Node("g1", 32, 512_000, {"h200": 4, "b200": 4}, ["gpu"], True),
    Node("g2", 128, 512_000, {"h200": 8}, ["gpu"], False),
]
PARTITIONS = {"cpu": Partition("cpu", True, True, 600), "gpu": Partition("gpu", True, False, None)}
CLUSTER = Cluster(PARTITIONS, NODES, accounting=True, enforced=True, min_job_age_s=300, accounts=["lab", "other"])
JOB = (
    "JobId=5 JobName=a b Partition=gpu TimeLimit=1-02:03:00 TimeMin=N/A BatchHost=g1 NumNodes=1 NumCPUs=8 "
    "TRES=cpu=8,mem=7.5G,node=1,billing=8 OverSubscribe=OK TresPerNode=gres:gpu:2 Comment=rule_x"
)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("01:00:00", 60), ("1-02:03:01", 1564), ("10:00", 10), ("UNLIMITED", None), ("", None)],
)
def test_times(text: str, minutes: int | None) -> None:
    assert parse.minutes_of(text) == minutes


@pytest.mark.parametrize(("text", "megabytes"), [("500M", 500), ("7.5G", 7680), ("2T", 2 << 20), ("8000", 8000)])
def test_sizes(text: str, megabytes: int) -> None:
    assert parse.megabytes_of(text) == megabytes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:2", {"": 2}),
        ("gpu:h200:4(S:0-1),gpu:a100:2", {"h200": 4, "a100": 2}),
        ("gpu", {"": 1}),
        ("gpu:tesla", {"tesla": 1}),
        ("nvme:1,(null)", {}),
    ],
)
def test_gres(gres: str, gpus: dict[str, int]) -> None:
    assert slurm.gpus_of(gres) == gpus


def test_a_job_as_scontrol_tells_it() -> None:
    told = parse.fields_of(JOB)
    assert told["JobName"] == "a b"
    shared = usage.placed("5", told, "0,1")
    assert (shared.node, shared.partition, shared.cpus, shared.gpus) == ("g1", "gpu", 8, 2)
    assert (shared.memory_bytes, shared.limit_minutes, shared.alone) == (7680 << 20, 1563, "gpu")
    assert usage.placed("5", told | {"OverSubscribe": "NO"}, "0,1").alone == "node"
    # GPUs that are visible because nobody hides them were not asked for
    assert usage.placed("5", {**told, "TresPerNode": ""}, "0,1").alone == "none"
    assert usage.placed("5", {}, "").alone == "unknown"


def test_a_node_that_is_drained_or_does_not_answer_is_not_used() -> None:
    line = "NodeName=n1 CPUTot=4 RealMemory=8000 Gres=gpu:h200:2 Partitions=a,b State={}"
    states = {"IDLE": True, "MIXED+PLANNED": True, "IDLE+DRAIN": False, "DOWN*": False, "IDLE+NOT_RESPONDING": False}
    for state, usable in states.items():
        node = slurm.node_of(parse.fields_of(line.format(state)))
        assert (node.usable, node.partitions, node.gpus) == (usable, ["a", "b"], {"h200": 2})


def test_each_rule_asks_for_what_it_needs() -> None:
    requests = Requests(MACHINES, TABLE, Path("absent"))
    pair = {"hardware": "h200", "pair": "flash_sdp"}
    measured = as_resources(requests.of("measure_pair", pair))
    assert (measured["gpu"], measured["gpu_model"], measured["gres"]) == (1, "h200", None)
    assert (measured["slurm_extra"], measured["cpus_per_task"]) == ("--exclusive", 8)
    assert as_resources(requests.of("verify_pair", pair))["slurm_extra"] is None
    doubled = as_resources(requests.of("measure_pair", pair | {"hardware": "2x_b200"}))
    assert (doubled["gpu"], doubled["gres"], doubled["slurm_extra"]) == (None, "gpu:b200:2", None)
    for rule in ("judge", "report", "prepare_text", "tokenize_text", "prepare_model"):
        asked = as_resources(requests.of(rule, {"hardware": "h200"}))
        assert (asked["gpu"], asked["gres"], asked["slurm_partition"], asked["cpus_per_task"]) == (None, None, "cpu", 1)
    accuracy = as_resources(requests.of("perplexity_eval", {"hardware": "cpu"}))
    assert (accuracy["gpu"], accuracy["gres"], accuracy["slurm_account"]) == (None, None, "lab")
    assert home(MACHINES).key == "cpu"
    assert home({"h200": MACHINES["h200"]}).key == "h200"


def test_ranks_of_several_nodes_are_a_task_a_node() -> None:
    spread = as_resources(need("inference_serving_multigpu", MACHINES["h200"], (1000, 60), nodes=2))
    assert (spread["nodes"], spread["tasks"], spread["tasks_per_gpu"], spread["gpu"]) == (2, 2, 0, 2)
    assert "nodes" not in as_resources(need("inference_serving_multigpu", MACHINES["h200"], (1000, 60)))


def noted(folder: Path, job: str, seconds: float, peak_bytes: int) -> None:
    one = usage.JobUsage(job, "measure_pair", seconds, seconds, peak_bytes)
    results.write(folder / "cpu" / "logs" / f"{job}{usage.SUFFIX}", one)


def test_what_earlier_jobs_used_raises_what_is_asked_for(tmp_path: Path) -> None:
    requests = Requests(MACHINES, TABLE, tmp_path)
    where = {"hardware": "cpu", "pair": "flash_sdp"}
    before = requests.of("measure_pair", where)
    noted(tmp_path, "measure_flash_sdp", 6000, 10_000 << 20)
    noted(tmp_path, "measure_other", 60_000, 100_000 << 20)
    after = requests.of("measure_pair", where)
    assert (after.memory_mb, after.minutes) == (15_000, 300)
    assert requests.of("measure_pair", where, attempt=2).memory_mb == 30_000
    requests.most["cpu"] = (20_000, 400)
    retried = requests.of("measure_pair", where, attempt=2)
    assert (retried.memory_mb, retried.minutes) == (20_000, 400)
    requests.most["cpu"] = (9_000, 10)
    assert requests.of("measure_pair", where, attempt=2) == after
    noted(tmp_path, "measure_flash_sdp", 1, 1)
    assert requests.of("measure_pair", where) == before
    (tmp_path / "cpu" / "logs" / f"measure_flash_sdp{usage.SUFFIX}").write_text("{")
    assert requests.of("measure_pair", where) == before


GOOD_PROFILE = {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 5}


def faults_of(cluster: Cluster = CLUSTER, profile: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    machines = {key: dataclasses.replace(one, account="lab", **changes) for key, one in MACHINES.items()}
    needs = [need("measure_pair", one, (1000, 60)) for one in machines.values()]
    return check.faults(machines, needs, GOOD_PROFILE | (profile or {}), cluster)


def test_a_run_that_fits_has_no_fault() -> None:
    assert faults_of() == []


def small(**changes: Any) -> Cluster:
    return dataclasses.replace(CLUSTER, **changes)


@pytest.mark.parametrize(
    ("cluster", "profile", "changes", "says"),
    [
        (CLUSTER, {}, {"partition": "gpus"}, "partition 'gpus' doesn't exist; did you mean 'gpu'?"),
        (CLUSTER, {}, {"pair_cpus": 33}, "no node of partition 'gpu' has more than 32"),
        (small(nodes=NODES[2:]), {}, {}, "asks for a node of partition 'gpu', and none is up"),
        (
            small(partitions=PARTITIONS | {"cpu": Partition("cpu", False, True, None)}),
            {},
            {},
            "partition 'cpu' is not up",
        ),
        (
            small(partitions=PARTITIONS | {"cpu": Partition("cpu", True, True, 2)}),
            {},
            {},
            "asks for 5 min, and jobs of partition 'cpu' end after 2 min",
        ),
        (CLUSTER, {"slurm-array-jobs": "all"}, {}, "this run has 3 kinds of machine"),
        (small(accounting=False), {}, {}, "this cluster keeps no accounts"),
        (small(accounts=["other"]), {}, {}, "you have no account 'lab' on this cluster; yours are: other"),
        (small(accounting=False), {"slurm-status-command": "sacct"}, {}, "sacct needs accounting"),
        (small(accounting=False, min_job_age_s=9), {}, {}, "set at most 3"),
    ],
)
def test_what_does_not_fit_is_named(
    cluster: Cluster, profile: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    found = faults_of(cluster, profile, **changes)
    assert any(says in line for line in found), found
    assert all("\n" not in line for line in found)


def test_the_most_that_a_partition_gives() -> None:
    assert check.most_of(CLUSTER) == {"cpu": (256_000, 600), "": (256_000, 600), "gpu": (512_000, sys.maxsize)}


def test_an_account_that_is_needed_and_missing() -> None:
    machines = {"h200": MACHINES["h200"]}
    found = check.faults(machines, [], GOOD_PROFILE, CLUSTER)
    assert found == ["slurm_account: this cluster takes no job without an account; yours are: lab, other"]
    for there in ({"default-resources": ["slurm_account=lab"]}, {"default-resources": {"slurm_account": "lab"}}):
        assert check.faults(machines, [], GOOD_PROFILE | there, CLUSTER) == []
    assert check.faults(machines, [], GOOD_PROFILE, small(default_account="lab")) == []


def test_the_shipped_profile_has_no_unknown_key() -> None:
    from snakemake.cli import get_argument_parser

    actions = get_argument_parser()._actions
    known = {name.lstrip("-") for one in actions for name in one.option_strings if name.startswith("--")}
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert check.profile_faults(profile, known, "profile") == []


def test_every_rule_has_its_measured_needs() -> None:
    requests = Requests(MACHINES, TABLE, Path("absent"))
    values = {
        "profile": {"mode": "minimal", "decoder": {"model": "x"}},
        "distributed": {"model": "x", "nodes": 2},
        "ladder": {"model": "auto"},
        "serving": {"mode": "load_test"},
        "validation": {"ranks": "auto", "nodes": 4},
    }
    needs = requests.every(["flash_sdp"], values)
    assert {one.rule for one in needs} == set(TABLE["cpu"])
    spread = {one.rule: one.nodes for one in needs if one.nodes > 1}
    assert spread == {"inference_serving_multigpu": 2, "validate_ranks": 4}
    values = {
        "profile": {"mode": "none", "decoder": {"model": "x"}},
        "distributed": {"model": "none", "nodes": 1},
        "ladder": {"model": "none"},
        "serving": {"mode": "none"},
        "validation": {"ranks": "none", "nodes": 1},
    }
    left = {one.rule for one in requests.every(["flash_sdp"], values)}
    assert not left & {
        "profile_pair",
        "profile_decoder",
        "inference_serving_multigpu",
        "ladder",
        "load_test",
        "validate_ranks",
    }
