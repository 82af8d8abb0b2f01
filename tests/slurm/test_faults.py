"""Jobs, nodes and Snakemake itself killed: the run completes, or completes when started again, and nothing is half."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import psutil

from serveproof import results
from serveproof.distributed_records import RankedRecord
from serveproof.serving_results import TensorParallelRecord
from tests.slurm.conftest import Cluster, Submitting
from tests.workflow.test_killed import assert_whole

ONE = {"cpu": {"partition": "cpu", "cpus": 1, "exclusive": "none"}}


def kill_node(cluster: Cluster, node: str) -> None:
    """Its slurmd is killed, the controller, which would notice after 26 s, is told, and what ran there dies with it.

    Left alive, its Snakemake would find its job gone half a minute later and delete what the retry has written.
    """
    file = cluster.folder / "run" / f"slurmd.{node}.pid"
    os.kill(int(file.read_text()), signal.SIGKILL)
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            own = process.environ()
            if (own.get("SLURMD_NODENAME"), own.get("CLUSTER")) == (node, str(cluster.folder)):
                process.kill()


def start_node(cluster: Cluster, node: str) -> None:
    log = (cluster.folder / "log" / "restart.log").open("a")
    configuration = str(cluster.folder / "etc" / "slurm.conf")
    subprocess.run(["/usr/sbin/slurmd", "-N", node, "-f", configuration], stdout=log, stderr=log, check=True)
    cluster.idle()


def test_a_cancelled_job_and_a_dead_node_are_retried(stubbed: Submitting) -> None:
    cluster = stubbed.cluster
    target = "results/cpu/pairs/flash_sdp/measure.json"
    process = stubbed.start(target, machines=ONE, wait={"hardware": 30, "verify_pair": 30})
    cancelled = stubbed.running("rule_verify_pair_wildcards_cpu_flash_sdp", "cpu/logs/verify_flash_sdp.log", process)
    cluster.call("scancel", cancelled)
    lost = stubbed.running("rule_hardware_wildcards_cpu", "cpu/logs/hardware.log", process)
    node = cluster.call("squeue", "-h", "-j", lost, "-o", "%N").strip()
    kill_node(cluster, node)
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        start_node(cluster, node)
    assert process.returncode == 0, output
    assert (stubbed.checkout.folder / target).exists()
    notes = stubbed.notes()
    assert notes["cpu/logs/hardware"]["SLURM_JOB_ID"] not in ("", lost)
    assert notes["cpu/logs/hardware"]["SLURMD_NODENAME"] != node
    assert notes["cpu/logs/verify_flash_sdp"]["SLURM_JOB_ID"] not in ("", cancelled)
    assert f"SLURM-job '{cancelled}' failed, SLURM status is: 'CANCELLED'" in output
    assert "NODE_FAIL" in output


def test_a_killed_run_is_completed_by_the_next_over_two_nodes(real: Submitting, tmp_path: Path) -> None:
    """The job that the killed run left has written nothing; the next makes it all, ranks over two nodes among it: the
    engine's, and those of a validation."""
    validated = "results/cpu/ranks/multi_gpu_validation.json"
    targets = ("results/cpu/pairs/flash_sdp/verify.json", "results/cpu/tensor_parallel.json")
    shape = tmp_path / "config.json"
    fields = json.loads((Path(real.checkout.settings["model"]) / "config.json").read_text())
    shape.write_text(json.dumps(fields | {"vocab_size": 300, "max_position_embeddings": 512}))
    machines = {"cpu": {"partition": "cpu", "cpus": 1, "exclusive": "none"}}
    over_two = {"distributed": f"{{model: {shape}, nodes: 2}}", "validation": "{ranks: auto, nodes: 2}"}
    spread = {"machines": machines, **over_two}
    process = real.start(*targets, **spread)
    left = real.running("rule_hardware_wildcards_cpu", "cpu/logs/hardware.log", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert left in real.cluster.jobs(real.checkout.folder).values()
    assert_whole(real.checkout.results)
    done = real.run(*targets, validated, **spread)
    assert done.returncode == 0, done.stdout
    assert f"serveproof: SLURM job {left} of an earlier run cancelled" in done.stdout
    assert_whole(real.checkout.results)
    machine = results.read(real.checkout.results / "cpu" / "hardware.json", results.HardwareRecord)
    assert machine.placement
    assert machine.placement.job_id != left
    assert results.read(real.checkout.folder / targets[0], results.VerifyRecord).cases
    record = results.read(real.checkout.folder / targets[1], TensorParallelRecord)
    assert (record.world, record.backend, record.equal) == (2, "gloo", True)
    ranked = results.read(real.checkout.folder / validated, RankedRecord)
    assert (ranked.nodes, ranked.world, ranked.backend) == (2, 2, "gloo")
    assert {case.status for case in ranked.cases} == {"passed", "skipped"}
    skipped = {case.case for case in ranked.cases if case.status == "skipped"}
    assert skipped == {"all_reduce_by_symmetric_memory", "tensor_parallel_speed"}
