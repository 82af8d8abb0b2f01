"""What the machine says of itself at one moment: clocks, throttle reasons, pressure. Reads only; sets nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from serveproof.hardware.key import Gpu, nvml, visible_gpus
from serveproof.results import DeviceState

T = TypeVar("T")

# NVML's clocks-event-reason bits (nvml.h). Those in SLOWED make a round's time meaningless; the software power cap
# is how a GPU at full load always runs, so it is recorded and not held against a round.
THROTTLE_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
SLOWED = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})


def throttle_names(bits: int) -> list[str]:
    """The names of the set bits of nvmlDeviceGetCurrentClocksThrottleReasons."""
    return [name for bit, name in THROTTLE_BITS.items() if bits & bit]


def _maybe(call: Callable[[], T]) -> T | None:
    with contextlib.suppress(Exception):  # NVML answers 'not supported' per query and per board
        return call()
    return None


def _throttle_reasons(library: Any, handle: Any) -> list[str]:
    return throttle_names(_maybe(lambda: int(library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))) or 0)


def _state(library: Any, index: int, gpu: Gpu) -> DeviceState:
    handle = library.nvmlDeviceGetHandleByUUID(gpu.uuid)
    sm, memory, temperature = library.NVML_CLOCK_SM, library.NVML_CLOCK_MEM, library.NVML_TEMPERATURE_GPU
    return DeviceState(
        index=index,
        name=gpu.name,
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        sm_clock_mhz=_maybe(lambda: int(library.nvmlDeviceGetClockInfo(handle, sm))),
        sm_clock_max_mhz=_maybe(lambda: int(library.nvmlDeviceGetMaxClockInfo(handle, sm))),
        memory_clock_mhz=_maybe(lambda: int(library.nvmlDeviceGetClockInfo(handle, memory))),
        temperature_c=_maybe(lambda: int(library.nvmlDeviceGetTemperature(handle, temperature))),
        power_w=_maybe(lambda: float(library.nvmlDeviceGetPowerUsage(handle)) / 1000),
        throttle_reasons=_throttle_reasons(library, handle),
    )


def device_states() -> list[DeviceState]:
    """One DeviceState per visible GPU; empty without an NVIDIA driver."""
    library = nvml()
    return [] if library is None else [_state(library, index, gpu) for index, gpu in enumerate(visible_gpus())]


def slowdown_reasons() -> list[str]:
    """Reasons why a visible GPU runs slowed down right now; asked twice a round, so it asks nothing else."""
    library = nvml()
    if library is None:
        return []
    handles = [library.nvmlDeviceGetHandleByUUID(gpu.uuid) for gpu in visible_gpus()]
    return sorted({reason for handle in handles for reason in _throttle_reasons(library, handle)} & SLOWED)


def cpu_pressure_percent() -> float | None:
    """Share of the last 10 s in which some runnable task waited for a CPU (/proc/pressure/cpu, `some avg10`)."""
    with contextlib.suppress(OSError):
        found = re.search(r"^some avg10=([\d.]+)", Path("/proc/pressure/cpu").read_text(), re.M)
        return float(found[1]) if found else None
    return None
