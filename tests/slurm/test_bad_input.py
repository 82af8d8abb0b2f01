"""What a cluster can't take is one line that names the key and the mend, from the run and from slurm-check alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import Cluster, Submitting
from tests.workflow.conftest import error_line

CPU = {"partition": "cpu", "cpus": 1, "exclusive": "none"}
# the mapping of `hardware:`, and what the line says
MACHINES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown partition": (
        {"cpu": CPU | {"partition": "cpus"}},
        "hardware.cpu.partition: partition 'cpus' doesn't exist; did you mean 'cpu'?",
    ),
    "an account where there are none": (
        {"cpu": CPU | {"account": "lab"}},
        "hardware.cpu.account: 'lab' is set, and this cluster keeps no accounts; leave it out",
    ),
    "more than any node has": (
        {"cpu": CPU | {"cpus": 5}},
        "asks for 5 CPUs, and no node of partition 'cpu' has more than 4; lower its `cpus`",
    ),
    "a GPU that nobody has": (
        {"h200": {"partition": "gpu", "cpus": 1, "gres": "gpu:h200:1"}},
        "asks for GPUs 'h200', and nodes of partition 'gpu' have of no model; mend its gres or gpu_model",
    ),
    "more GPUs than a node has": (
        {"4x_h200": {"partition": "gpu", "cpus": 1, "gpu": 4}},
        "asks for 4 GPUs, and no node of partition 'gpu' has more than 2",
    ),
}


def nothing_submitted(submitting: Submitting) -> None:
    assert submitting.cluster.jobs(submitting.checkout.folder) == {}
    assert not (submitting.checkout.folder / ".snakemake" / "slurm_logs").exists()


@pytest.mark.parametrize("case", MACHINES)
def test_what_the_cluster_has_not_is_one_line(stubbed: Submitting, case: str) -> None:
    machines, says = MACHINES[case]
    assert says in error_line(stubbed.run(machines=machines))
    nothing_submitted(stubbed)


def test_no_sbatch_is_one_line(stubbed: Submitting, tmp_path: Path) -> None:
    """A PATH with all but sbatch."""
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            link = tmp_path / "bin" / program.name
            link.parent.mkdir(exist_ok=True)
            if program.name != "sbatch" and not link.exists():
                link.symlink_to(program)
    environment = {**stubbed.cluster.environment(), "PATH": f"{Path(sys.executable).parent}:{tmp_path / 'bin'}"}
    done = stubbed.checkout.call(stubbed.command(machines={"cpu": CPU}), **environment)
    assert "sbatch: not on the PATH; run on a submit node of the cluster" in error_line(done)
    nothing_submitted(stubbed)


def check(submitting: Submitting, *arguments: str, prefix: tuple[str, ...] = (), **more: str) -> Any:
    command = [*prefix, sys.executable, "scripts/slurm_check.py", *arguments]
    return submitting.checkout.call(command, **(submitting.cluster.environment() | more))


def configured(submitting: Submitting, machines: str) -> None:
    file = submitting.checkout.folder / "config" / "config.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(f"hardware: {machines}" if line.startswith("hardware:") else line for line in lines))


def test_the_check_passes_what_is_good_and_leaves_nothing(stubbed: Submitting) -> None:
    configured(stubbed, "{cpu: {partition: cpu, cpus: 1}, 2x_h200: {partition: gpu, cpus: 2, gres: gpu:2}}")
    done = check(stubbed)
    assert done.returncode == 0, done.stdout
    assert "cpu, 2x_h200 on cpu, gpu: the cluster can take this run" in done.stdout
    assert not list(stubbed.checkout.results.glob(".token*"))


def test_the_check_says_every_fault(stubbed: Submitting) -> None:
    configured(stubbed, "{cpu: {partition: cpu, cpus: 9}, h200: {partition: gpus, cpus: 1, gpu: 1}}")
    done = check(stubbed)
    assert done.returncode == 2
    lines = [line for line in done.stdout.splitlines() if line.startswith("serveproof: ")]
    assert any("partition 'gpus' doesn't exist; did you mean 'gpu'?" in line for line in lines)
    assert any("asks for 9 CPUs" in line for line in lines)
    assert len(lines) == len(set(lines))
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("slurm-status-comand", "squeue", "unknown key 'slurm-status-comand'; did you mean 'slurm-status-command'?"),
        ("slurm-status-command", "sacct", "slurm-status-command: sacct needs accounting, which this cluster has not"),
        ("slurm-init-seconds-before-status-checks", "200", "which forgets a finished job after 300 s; set at most 100"),
        ("slurm-efficiency-report", "true", "slurm-efficiency-report: needs accounting"),
    ],
)
def test_a_wrong_profile_is_one_line(stubbed: Submitting, key: str, value: str, says: str) -> None:
    file = stubbed.checkout.folder / "profiles" / "slurm" / "config.yaml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith(f"{key}:")]
    file.write_text("\n".join([*kept, f"{key}: {value}"]) + "\n")
    assert says in error_line(check(stubbed))
    if "unknown" in says:
        done = stubbed.run(machines={"cpu": CPU})
        assert done.returncode == 2
        assert f"unrecognized arguments: --{key}" in done.stdout
        nothing_submitted(stubbed)


def test_a_folder_that_nodes_do_not_see_is_one_line(stubbed: Submitting) -> None:
    """Here the results folder is a file system of this process alone."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    stubbed.checkout.results.mkdir()
    script = f'mount -t tmpfs none {stubbed.checkout.results} && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, "sh")
    configured(stubbed, "{cpu: {partition: cpu, cpus: 1}}")
    line = error_line(check(stubbed, prefix=prefix))
    assert f"{stubbed.checkout.results}: the nodes of partition 'cpu' don't see it" in line
    assert "work in a folder that all nodes share" in line
    command = [*prefix, *stubbed.command(machines={"cpu": CPU})]
    done = stubbed.checkout.call(command, **stubbed.cluster.environment())
    assert "don't see it" in error_line(done)
    nothing_submitted(stubbed)


def test_a_controller_that_does_not_answer_is_one_line(stubbed: Submitting, tmp_path: Path) -> None:
    text = (stubbed.cluster.folder / "etc" / "slurm.conf").read_text()
    silent = tmp_path / "slurm.conf"
    text = text.replace(f"SlurmctldPort={stubbed.cluster.port}", "SlurmctldPort=1")
    silent.write_text(text.replace("MessageTimeout=10", "MessageTimeout=2"))
    line = error_line(check(stubbed, SLURM_CONF=str(silent)))
    assert "scontrol show" in line


def test_clusters_are_what_scripts_started(cluster: Cluster) -> None:
    """Two nodes, and nothing listens beyond this host."""
    assert cluster.call("sinfo", "-h", "-N", "-p", "cpu", "-o", "%N %G").split() == ["n1", "gpu:2", "n2", "gpu:2"]
