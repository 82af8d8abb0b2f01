"""The hardware key (`cpu`, `h200`, `2x_h200`, `b200`, ...), found without importing torch.

The key names the results folder and the expectations file, so it must be the same on the submit node, in a job and
in a report: it comes from NVML (package nvidia-ml-py) and CUDA_VISIBLE_DEVICES alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from serveproof.errors import UserError

# Words of a product name that say nothing about which chip it is: vendor, memory size and kind, module form.
_NOISE = re.compile(r"^(nvidia|geforce|tesla|graphics|device|\d+gb|hbm\d?e?|sxm\d?|generation)$")


@dataclass(frozen=True)
class Gpu:
    """One visible GPU: its NVML index, UUID and product name."""

    index: int
    uuid: str
    name: str


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def nvml() -> Any | None:
    """The initialised pynvml module, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # pynvml raises a class of its own per error code; each means there is no usable driver
        return None
    return pynvml


def visible_gpus() -> list[Gpu]:
    """The GPUs a CUDA program started now would see, in its order (CUDA_VISIBLE_DEVICES by index or UUID)."""
    library = nvml()
    if library is None:
        return []
    handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    gpus = [
        Gpu(i, _text(library.nvmlDeviceGetUUID(handle)), _text(library.nvmlDeviceGetName(handle)))
        for i, handle in enumerate(handles)
    ]
    return select_visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def driver_version() -> str:
    """The NVIDIA driver's version, or '' without one."""
    library = nvml()
    return "" if library is None else _text(library.nvmlSystemGetDriverVersion())


def select_visible(gpus: list[Gpu], setting: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: unset means all, and the first entry that names no GPU ends the list."""
    if setting is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal():
            found = [gpu for gpu in gpus if gpu.index == int(entry)]
        else:
            found = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen.append(found[0])
    return chosen


def slug(product_name: str) -> str:
    """A product name as a key: 'NVIDIA H100 80GB HBM3' -> 'h100', 'NVIDIA H100 PCIe' -> 'h100_pcie'."""
    words = re.split(r"[^a-z0-9.]+", product_name.lower())
    kept = [word for word in words if word and not _NOISE.match(word)]
    return "_".join(kept).replace(".", "_") or "gpu"


def detect() -> str:
    """The key of this machine. GPUs of different kinds at once are a UserError: one key must mean one kind."""
    gpus = visible_gpus()
    names = {gpu.name for gpu in gpus}
    if not gpus:
        return "cpu"
    if len(names) > 1:
        raise UserError(
            f"GPUs of different kinds are visible ({', '.join(sorted(names))}); set CUDA_VISIBLE_DEVICES to one kind"
        )
    key = slug(gpus[0].name)
    return key if len(gpus) == 1 else f"{len(gpus)}x_{key}"


def device_of(key: str) -> str:
    """`cpu` or `cuda`: what torch calls the device that this key stands for.

    A CPU's key is `cpu`, or cpu_NAME where one run measures several kinds of CPU: the name is the user's.
    """
    return "cpu" if key == "cpu" or key.startswith("cpu_") else "cuda"


def device_count(key: str) -> int:
    """How many devices a key stands for: 2 for `2x_h200`, 1 for `h200` and `cpu`."""
    found = re.match(r"(\d+)x_", key)
    return int(found[1]) if found else 1


def require(key: str) -> None:
    """A UserError when this machine is not what `key` says: results never carry another machine's name.

    A CPU's key is every machine's: a GPU beside it is not used.
    """
    if device_of(key) == "cpu":
        return
    here = detect()
    if key != here:
        raise UserError(
            f"hardware: the run is for '{key}' but this machine is '{here}'; set `hardware: auto` in "
            f"config/config.yaml, or run on a machine that has it"
        )
