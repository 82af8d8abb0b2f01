"""What each rule asks SLURM for: its machine's partition, CPUs and GPUs; memory and time as measured, with head-room.

Memory and time come from config/resources.yaml, which holds what a run of the shipped config was measured to use, and
from what earlier runs here noted (*.usage.json): the larger of the two, with head-room. A retry asks for twice, up to
what the partition has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serveproof.cluster.usage import SUFFIX, JobUsage
from serveproof.errors import UserError
from serveproof.hardware.machines import Machine
from serveproof.results import read

# Another text, model or case takes more than what was measured; a job that is killed for it costs more than the wait.
MEMORY_HEADROOM, TIME_HEADROOM = 1.5, 3.0
LEAST_MEMORY_MB, LEAST_MINUTES = 500, 5
# log name of a pair's jobs
LOGS = {"verify_pair": "verify_{pair}", "measure_pair": "measure_{pair}", "profile_pair": "profile_{pair}"}
# rules of which several jobs, that are no pair's, share one request
MANY = {"load_test": "load_test_*", "validate_ranks": "validate_*"}
TIMED = (
    "hardware",
    "measure_pair",
    "profile_pair",
    "profile_decoder",
    "ladder",
    "load_sweep",
    "load_test",
    "inference_serving_multigpu",
    "validate_ranks",
)
ON_THE_DEVICE = (*TIMED, "verify_pair", "perplexity_eval")
# on the first kind of machine that is a CPU, whatever hardware their records are of
ONE_CPU = ("prepare_model", "prepare_text", "tokenize_text", "judge", "history", "report")


@dataclass(frozen=True)
class Need:
    """One job's request. Empty or 0 is not asked for. alone: sbatch --exclusive."""

    rule: str
    machine: Machine
    cpus: int
    memory_mb: int
    minutes: int
    gpu: int = 0
    gpu_model: str = ""
    gres: str = ""
    alone: bool = False
    nodes: int = 1


def home(machines: Mapping[str, Machine]) -> Machine:
    """Where the rules of no hardware key run: the first kind that is a CPU, else the first."""
    return next((one for one in machines.values() if one.device == "cpu"), next(iter(machines.values())))


def measured(table: Mapping[str, Any], rule: str, device: str, noted: list[Path]) -> tuple[float, float]:
    """(MB, seconds) that the rule's jobs were measured to use at most: in the table, or in the usages noted here."""
    entry = table.get(device, {}).get(rule) or table["cpu"][rule]
    used = [(float(entry["memory_mb"]), float(entry["seconds"]))]
    for path in noted:
        try:
            one = read(path, JobUsage)
        except UserError:
            continue
        used.append((one.peak_bytes / 2**20, one.seconds))
    return max(memory for memory, _ in used), max(seconds for _, seconds in used)


def need(rule: str, machine: Machine, size: tuple[float, float], nodes: int = 1) -> Need:
    """The request of one job of `rule` on `machine`. size: (MB, seconds) as measured."""
    memory_mb, seconds = size
    gpus = rule in ON_THE_DEVICE and machine.device == "cuda"
    cpus = machine.pair_cpus if rule in LOGS else machine.cpus
    return Need(
        rule=rule,
        machine=machine,
        cpus=1 if rule in ONE_CPU else cpus,
        memory_mb=max(LEAST_MEMORY_MB, math.ceil(memory_mb * MEMORY_HEADROOM / 100) * 100),
        minutes=max(LEAST_MINUTES, math.ceil(seconds * TIME_HEADROOM / 60)),
        gpu=machine.gpu * nodes if gpus else 0,
        gpu_model=machine.gpu_model if gpus else "",
        gres=machine.gres if gpus else "",
        alone=rule in TIMED and machine.alone == "node",
        nodes=nodes,
    )


def as_resources(one: Need) -> dict[str, Any]:
    """The resources of snakemake-executor-plugin-slurm that ask for it; what is None isn't asked for."""
    spread = {"nodes": one.nodes, "tasks": one.nodes, "tasks_per_gpu": 0, "mpi": "srun"} if one.nodes > 1 else {}
    return {
        "mem_mb": one.memory_mb,
        "runtime": one.minutes,
        "cpus_per_task": one.cpus,
        "slurm_partition": one.machine.partition or None,
        "slurm_account": one.machine.account or None,
        "qos": one.machine.qos or None,
        "constraint": one.machine.constraint or None,
        "gpu": one.gpu or None,
        "gpu_model": one.gpu_model or None,
        "gres": one.gres or None,
        "slurm_extra": "--exclusive" if one.alone else None,
        **spread,
    }


NAMES = (
    "mem_mb", "runtime", "cpus_per_task", "slurm_partition", "slurm_account", "qos", "constraint", "gpu", "gpu_model",
    "gres", "slurm_extra",
)  # fmt: skip
SPREAD = ("nodes", "tasks", "tasks_per_gpu", "mpi")


@dataclass(frozen=True)
class Requests:
    """What a run's rules ask for. folder: the results, whose logs hold what earlier jobs used."""

    machines: Mapping[str, Machine]
    table: Mapping[str, Any]
    folder: Path
    # partition -> the most (MB, minutes) that it gives a job, as far as a cluster was asked
    most: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, rule: str, wildcards: Mapping[str, str], attempt: int = 1, nodes: int = 1) -> Need:
        """The request of one job."""
        key = wildcards.get("hardware", "")
        machine = home(self.machines) if rule in ONE_CPU else self.machines[key]
        logs = self.folder / (key or "inputs") / "logs"
        name = (LOGS | MANY).get(rule, rule).format(pair=wildcards.get("pair", "*"))
        size = measured(self.table, rule, machine.device, sorted(logs.glob(name + SUFFIX)))
        asked = need(rule, machine, size, nodes=nodes)
        if attempt == 1:
            return asked
        # more than there is would be refused, and a job that only lost its node would not come back
        memory_mb, minutes = self.most.get(machine.partition, (attempt * asked.memory_mb, attempt * asked.minutes))
        return replace(
            asked,
            memory_mb=max(asked.memory_mb, min(attempt * asked.memory_mb, memory_mb)),
            minutes=max(asked.minutes, min(attempt * asked.minutes, minutes)),
        )

    def resources(self, rule: str, nodes: int = 1) -> dict[str, Callable[..., Any]]:
        """What stands under a rule's `resources:`, each a function of its wildcards and attempt."""

        def one(name: str) -> Callable[..., Any]:
            def value(wildcards: Any, attempt: int) -> Any:
                return as_resources(self.of(rule, dict(wildcards.items()), attempt, nodes)).get(name)

            return value

        return {name: one(name) for name in (*NAMES, *(SPREAD if nodes > 1 else ()))}

    def every(self, pairs: list[str], values: Mapping[str, Any]) -> list[Need]:
        """The requests of a run's jobs, for the check before it. values: the config's."""
        profiled, decoder = values["profile"]["mode"] != "none", values["profile"]["decoder"]["model"] != "none"
        nodes_of = {
            "inference_serving_multigpu": values["distributed"]["nodes"],
            "validate_ranks": values["validation"]["nodes"],
        }
        left_out = {
            *([] if profiled else ["profile_pair"]),
            *([] if profiled and decoder else ["profile_decoder"]),
            *([] if values["serving"]["mode"] != "none" else ["load_sweep", "load_test"]),
            *([] if values["validation"]["ranks"] != "none" else ["validate_ranks"]),
            *([] if values["ladder"]["model"] != "none" else ["ladder"]),
            *([] if values["distributed"]["model"] != "none" else ["inference_serving_multigpu"]),
        }
        needs = [self.of(rule, {}) for rule in ONE_CPU]
        for key in self.machines:
            for rule in (one for one in ON_THE_DEVICE if one not in left_out):
                nodes = nodes_of.get(rule, 1)
                for pair in pairs if rule in LOGS else [""]:
                    needs.append(self.of(rule, {"hardware": key, "pair": pair}, nodes=nodes))
        return needs
