"""The kinds of machine of one run: `hardware:` of the config as one Machine a key. Never imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from serveproof.errors import UserError
from serveproof.hardware.key import detect, device_count, device_of

Alone = Literal["node", "gpu", "none"]
GRES = re.compile(r"gpu(?::(?P<model>(?![0-9]+$)[A-Za-z0-9_.]+))?(?::(?P<count>[0-9]+))?$")


@dataclass(frozen=True)
class Machine:
    """One kind of machine. cpus: of a job that has it to itself, pair_cpus: of a job on one pair.

    gpu with gpu_model, or gres: how a job on it asks SLURM for its GPUs. alone: what a timed job has to itself.
    python: the Python of its jobs. What is empty is left to the scheduler, and what is not for SLURM has no partition.
    """

    key: str
    cpus: int
    pair_cpus: int
    gpu: int = 0
    gpu_model: str = ""
    gres: str = ""
    alone: Alone = "none"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    python: str = "python3"

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return device_of(self.key)

    @property
    def gpu_request(self) -> tuple[str, int]:
        """(model or '', how many GPUs a job on one node gets)."""
        if not self.gres:
            return self.gpu_model, self.gpu
        found = GRES.match(self.gres)
        return (found["model"] or "", int(found["count"] or 1)) if found else ("", 0)


def _fault(key: str, name: str, message: str) -> UserError:
    return UserError(f"config/config.yaml: key 'hardware.{key}.{name}': {message}")


def _of_cluster(key: str, entry: dict[str, Any]) -> Machine:
    """One entry of the mapping, validated by the schema before; here what it says together with its key."""
    asks = [name for name in ("gpu", "gres") if name in entry]
    device, count = device_of(key), device_count(key)
    if device == "cpu" and asks:
        raise _fault(key, asks[0], f"a machine '{key}' is a CPU and holds no GPU; leave it out, or name a GPU's key")
    if device == "cuda" and len(asks) != 1:
        said = "both are given" if asks else "neither is given"
        raise _fault(key, "gpu", f"'{key}' asks for GPUs by `gpu: {count}` or by `gres: gpu:{count}`, and {said}")
    if "gpu_model" in entry and "gpu" not in entry:
        raise _fault(key, "gpu_model", "goes with `gpu`; with `gres` write the model in it, as gpu:MODEL:COUNT")
    fallback: Alone = "node" if device == "cpu" else "gpu"
    fields = {name: value for name, value in entry.items() if name != "exclusive"}
    machine = Machine(key=key, pair_cpus=entry["cpus"], alone=entry.get("exclusive", fallback), **fields)
    if machine.alone == "gpu" and device == "cpu":
        raise _fault(key, "exclusive", f"'{key}' has no GPU to have alone; set node or none")
    asked = machine.gpu_request[1]
    if device == "cuda" and asked != count:
        raise _fault(key, asks[0], f"asks for {asked} GPUs and the key '{key}' stands for {count}; make them the same")
    return machine


def machines_of(setting: Any, threads: int) -> dict[str, Machine]:
    """key -> Machine for `hardware:` as the schema lets it through: auto, a key, or a mapping of keys.

    threads: of a machine that is not described; its GPUs share them. Such a one asks for its GPUs by `gpu`.
    """
    if isinstance(setting, dict):
        return {key: _of_cluster(key, entry) for key, entry in setting.items()}
    key = detect() if setting == "auto" else str(setting)
    count = device_count(key)
    gpus = count if device_of(key) == "cuda" else 0
    return {key: Machine(key=key, cpus=threads, pair_cpus=max(1, threads // count), gpu=gpus)}
