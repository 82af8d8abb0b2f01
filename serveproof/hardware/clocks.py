"""What the machine says of itself at one moment: clocks, throttle reasons, pressure. Reads only; nothing sets a clock."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from serveproof.hardware.key import nvml, visible_gpus
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


def device_states() -> list[DeviceState]:
    """One DeviceState per visible GPU; empty without an NVIDIA driver."""
    library = nvml()
    if library is None:
        return []
    states = []
    for index, gpu in enumerate(visible_gpus()):
        handle = library.nvmlDeviceGetHandleByUUID(gpu.uuid)

        def clock(kind: int, handle: object = handle) -> int | None:
            return _maybe(lambda: int(library.nvmlDeviceGetClockInfo(handle, kind)))

        states.append(
            DeviceState(
                index=index,
                name=gpu.name,
                memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
                sm_clock_mhz=clock(library.NVML_CLOCK_SM),
                sm_clock_max_mhz=_maybe(
                    lambda h=handle: int(library.nvmlDeviceGetMaxClockInfo(h, library.NVML_CLOCK_SM))  # type: ignore[misc]
                ),
                memory_clock_mhz=clock(library.NVML_CLOCK_MEM),
                temperature_c=_maybe(
                    lambda h=handle: int(library.nvmlDeviceGetTemperature(h, library.NVML_TEMPERATURE_GPU))  # type: ignore[misc]
                ),
                power_w=_maybe(lambda h=handle: library.nvmlDeviceGetPowerUsage(h) / 1000),  # type: ignore[misc]
                throttle_reasons=throttle_names(
                    _maybe(lambda h=handle: int(library.nvmlDeviceGetCurrentClocksThrottleReasons(h))) or 0  # type: ignore[misc]
                ),
            )
        )
    return states


def slowdown_reasons() -> list[str]:
    """Reasons why a visible GPU runs slowed down right now; empty on a CPU."""
    return sorted({reason for state in device_states() for reason in state.throttle_reasons} & SLOWED)


def cpu_pressure_percent() -> float | None:
    """Share of the last 10 s in which some runnable task waited for a CPU (/proc/pressure/cpu, `some avg10`)."""
    with contextlib.suppress(OSError):
        found = re.search(r"^some avg10=([\d.]+)", Path("/proc/pressure/cpu").read_text(), re.M)
        return float(found[1]) if found else None
    return None
