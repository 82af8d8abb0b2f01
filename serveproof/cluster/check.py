"""Whether a cluster can take a run, before anything is submitted: each fault a line that names the key and the mend."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serveproof.cluster.requests import Need
from serveproof.cluster.slurm import Cluster, Node, Partition
from serveproof.errors import UserError
from serveproof.hardware.machines import Machine

# s that a partition's probe waits for a free CPU; a full partition is no fault
PROBE_WAIT_S = 20


def profile_faults(profile: Mapping[str, Any], known: Iterable[str], name: str) -> list[str]:
    """Keys that Snakemake doesn't have. known: its options without their dashes."""
    known = sorted(known)
    faults = []
    for key in profile:
        if key.replace("_", "-") in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        mend = f"did you mean '{near[0]}'?" if near else "`snakemake --help` lists them"
        faults.append(f"{name}: unknown key '{key}'; {mend}")
    return faults


def setting_faults(profile: Mapping[str, Any], machines: Mapping[str, Machine], cluster: Cluster) -> list[str]:
    """Settings of the profile that this cluster, or this run, can't have."""
    faults = []
    status = profile.get("slurm-status-command")
    if status == "sacct" and not cluster.accounting:
        faults.append("slurm-status-command: sacct needs accounting, which this cluster has not; set squeue")
    first_s = int(profile.get("slurm-init-seconds-before-status-checks", 40))
    if status == "squeue" and not cluster.accounting and cluster.min_job_age_s < 3 * first_s:
        faults.append(
            f"slurm-init-seconds-before-status-checks: {first_s} s is too long for this cluster, which forgets a "
            f"finished job after {cluster.min_job_age_s} s; set at most {max(1, cluster.min_job_age_s // 3)}"
        )
    if profile.get("slurm-efficiency-report") and not cluster.accounting:
        faults.append("slurm-efficiency-report: needs accounting, which this cluster has not; leave it out")
    if profile.get("slurm-array-jobs") and len(machines) > 1:
        faults.append(
            "slurm-array-jobs: the plugin gives every task of an array the first one's partition, and this run has "
            f"{len(machines)} kinds of machine; leave it out, or run one kind at a time"
        )
    return faults


def account_faults(machines: Mapping[str, Machine], common: str, cluster: Cluster) -> list[str]:
    """common: slurm_account of the profile's default-resources, '' without."""
    asked = {f"hardware.{one.key}.account": one.account for one in machines.values() if one.account}
    asked |= {"slurm_account": common} if common else {}
    faults = []
    for name, account in asked.items():
        if not cluster.accounting:
            faults.append(f"{name}: '{account}' is set, and this cluster keeps no accounts; leave it out")
        elif cluster.accounts and account.lower() not in cluster.accounts:
            mend = f"yours are: {', '.join(cluster.accounts)}"
            faults.append(f"{name}: you have no account '{account}' on this cluster; {mend}")
    needless = common or cluster.default_account or all(one.account for one in machines.values())
    if cluster.enforced and not needless:
        mend = f"yours are: {', '.join(cluster.accounts) or 'none, so ask its administrators'}"
        faults.append(f"slurm_account: this cluster takes no job without an account; {mend}")
    return faults


def need_faults(one: Need, cluster: Cluster, fallback: str) -> list[str]:
    """What of one request the cluster can't give. fallback: the partition where a machine names none."""
    name = one.machine.partition or fallback
    where = f"hardware.{one.machine.key}.partition" if one.machine.partition else "slurm_partition"
    partition = cluster.partitions.get(name)
    if partition is None:
        there = sorted(cluster.partitions)
        near = difflib.get_close_matches(name, there, n=1)
        mend = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(there)}"
        said = f"partition '{name}' doesn't exist" if name else "none is named and the cluster has no default"
        return [f"{where}: {said}; {mend}"]
    if not partition.up:
        return [f"{where}: partition '{name}' is not up"]
    return _fit(one, partition, [node for node in cluster.nodes if name in node.partitions])


def _fit(one: Need, partition: Partition, nodes: list[Node]) -> list[str]:
    asks = f"rule {one.rule} on {one.machine.key} asks for"
    place = f"of partition '{partition.name}'"
    limit = partition.limit_minutes
    if limit is not None and one.minutes > limit:
        return [
            f"{asks} {one.minutes} min, and jobs {place} end after {limit} min; name a partition with a longer limit"
        ]
    usable = [node for node in nodes if node.usable]
    if not usable:
        return [f"{asks} a node {place}, and none is up"]
    model, gpus = one.machine.gpu_request if one.gpu or one.gres else ("", 0)
    most_cpus, most_mb = max(node.cpus for node in usable), max(node.memory_mb for node in usable)
    if one.cpus > most_cpus:
        return [f"{asks} {one.cpus} CPUs, and no node {place} has more than {most_cpus}; lower its `cpus`"]
    if one.memory_mb > most_mb:
        return [f"{asks} {one.memory_mb} MB, and no node {place} has more than {most_mb}; name another partition"]
    if gpus and not any(_gpus(node, model) for node in usable):
        kinds = sorted({kind or "of no model" for node in usable for kind in node.gpus})
        wanted = f"GPUs '{model}'" if model else "GPUs"
        return [f"{asks} {wanted}, and nodes {place} have {', '.join(kinds) or 'none'}; mend its gres or gpu_model"]
    if gpus > (most := max(_gpus(node, model) for node in usable)):
        return [f"{asks} {gpus} GPUs, and no node {place} has more than {most}; use a key of {most}"]
    fitting = [
        node
        for node in usable
        if node.cpus >= one.cpus and node.memory_mb >= one.memory_mb and _gpus(node, model) >= gpus
    ]
    if len(fitting) < one.nodes:
        wanted = f"{one.nodes} nodes with {one.cpus} CPUs, {one.memory_mb} MB and {gpus} GPUs each"
        return [f"{asks} {wanted}, and {len(fitting)} {place} have that"]
    return []


def _gpus(node: Node, model: str) -> int:
    return node.gpus.get(model, 0) if model else sum(node.gpus.values())


def most_of(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """partition -> the most (MB, minutes) that one of its nodes gives a job; '' is the default partition's name too."""
    found = {}
    for partition in cluster.partitions.values():
        memory_mb = [node.memory_mb for node in cluster.nodes if node.usable and partition.name in node.partitions]
        if memory_mb:
            minutes = partition.limit_minutes or sys.maxsize
            found[partition.name] = (max(memory_mb), minutes)
            found |= {"": found[partition.name]} if partition.default else {}
    return found


def faults(
    machines: Mapping[str, Machine], needs: Iterable[Need], profile: Mapping[str, Any], cluster: Cluster
) -> list[str]:
    """Every fault, each once, but for the probe. profile: keys as in profiles/slurm/config.yaml."""
    common = default_resources(profile)
    fallback = common.get("slurm_partition") or next((p.name for p in cluster.partitions.values() if p.default), "")
    found = setting_faults(profile, machines, cluster)
    found += account_faults(machines, common.get("slurm_account", ""), cluster)
    for one in needs:
        found += need_faults(one, cluster, fallback)
    return list(dict.fromkeys(found))


def default_resources(profile: Mapping[str, Any]) -> dict[str, str]:
    """`default-resources`, which a profile may write as a list of NAME=VALUE or as a mapping."""
    given = profile.get("default-resources") or {}
    if isinstance(given, dict):
        return {str(name): str(value) for name, value in given.items()}
    pairs = (str(entry).partition("=") for entry in given)
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def probe(partition: str, account: str, folder: Path) -> tuple[str, str]:
    """(fault, note): whether a node of the partition sees what this machine writes into `folder`.

    A token file is written here and read there, by a job of one CPU. Waiting longer than PROBE_WAIT_S is a note.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    file = folder / f".token-{token}"
    command = ["srun", "-Q", f"--immediate={PROBE_WAIT_S}", "-n1", "-c1", "--mem=100", "-t", "1", "-D", "/"]
    command += ["--job-name=serveproof-probe", *(["-p", partition] if partition else [])]
    command += ["-A", account] if account else []
    environment = {name: value for name, value in os.environ.items() if name not in ("SLURM_JOB_ID", "SLURM_JOBID")}
    what = f"partition '{partition}'" if partition else "the default partition"
    try:
        file.write_text(token)
        done = subprocess.run(
            [*command, "cat", str(file)],
            capture_output=True, text=True, check=False, timeout=3 * PROBE_WAIT_S, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"{what}: not probed, no answer in {3 * PROBE_WAIT_S} s"
    finally:
        file.unlink(missing_ok=True)
    if done.stdout.strip() == token:
        return "", ""
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    if re.search(r"No such file|Permission denied|not found", done.stderr):
        return f"{folder}: the nodes of {what} don't see it ({said}); work in a folder that all nodes share", ""
    if re.search(r"immediate|temporarily|busy|Socket timed out|Unable to confirm", done.stderr):
        return "", f"{what}: not probed, no CPU was free in {PROBE_WAIT_S} s"
    return f"{what}: a probe job failed: {said}", ""


def inspect(
    needs: list[Need], profile: Mapping[str, Any], cluster: Cluster, folder: Path
) -> tuple[list[str], list[str]]:
    """(faults, notes) of a run. Only where there is no other fault does a node of each partition try `folder`."""
    machines = {one.machine.key: one.machine for one in needs}
    found, notes = faults(machines, needs, profile, cluster), []
    if found:
        return found, []
    common = default_resources(profile)
    places = {
        (one.partition or common.get("slurm_partition", ""), one.account or common.get("slurm_account", ""))
        for one in machines.values()
    }
    for partition, account in sorted(places):
        fault, said = probe(partition, account, folder)
        found += [fault] if fault else []
        notes += [said] if said else []
    return found, notes


def before_a_run(needs: list[Need], settings: Any, resources: Mapping[str, Any], cluster: Cluster, folder: Path) -> str:
    """The same from inside Snakemake, as text of one fault or note a line; a UserError with the first fault.

    settings: the plugin's, as Snakemake has read them from profile and command line. resources: --default-resources.
    """
    names = ("status_command", "init_seconds_before_status_checks", "array_jobs", "efficiency_report")
    given = {f"slurm-{name.replace('_', '-')}": getattr(settings, name, None) for name in names}
    profile = {name: value for name, value in given.items() if value} | {"default-resources": dict(resources)}
    found, notes = inspect(needs, profile, cluster, folder)
    if found:
        raise UserError(found[0])
    return "\n".join(notes)
