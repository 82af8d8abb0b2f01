"""Per-GPU metrics from NVML alone, under DCGM's names, units and labels, so that dashboards for NVIDIA's dcgm-exporter
fill without a change (names and help: dcgm-exporter, etc/default-counters.csv and dcp-metrics-included.csv).

A query that a board or driver does not support is a series that is not there: never a zero.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serveproof.telemetry.exposition import Family
from serveproof.telemetry.gpu_profiling import PROFILING, Profiler

MIB = 2**20
ALL_LINKS = 2**32 - 1
Read = Callable[[Any, Any], float]


@dataclass(frozen=True)
class GpuMetric:
    """One metric and how NVML tells it, from the pynvml module and a device handle."""

    name: str
    kind: str
    help: str
    read: Read


def _memory(library: Any, handle: Any) -> Any:
    try:
        return library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
    except Exception:  # an older driver
        return library.nvmlDeviceGetMemoryInfo(handle)


def _field(library: Any, handle: Any, *fields: tuple[int, int]) -> float:
    """The sum of field values (field, scope). Raises where one is not supported."""
    total = 0
    for value in library.nvmlDeviceGetFieldValues(handle, list(fields)):
        if value.nvmlReturn:
            raise LookupError(f"field {value.fieldId} is not supported")
        wide = value.valueType in (library.NVML_VALUE_TYPE_UNSIGNED_LONG, library.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)
        total += value.value.ullVal if wide else value.value.uiVal
    return float(total)


def _violation(policy: str) -> Read:
    return lambda n, h: n.nvmlDeviceGetViolationStatus(h, getattr(n, f"NVML_PERF_POLICY_{policy}")).violationTime


def _throttle(library: Any, handle: Any) -> float:
    return float(library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


METRICS: tuple[GpuMetric, ...] = tuple(
    GpuMetric(f"DCGM_FI_DEV_{name}", kind, text, read)
    for name, kind, text, read in (
        ("SM_CLOCK", "gauge", "SM clock frequency (in MHz).",
         lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
        ("MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).",
         lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM)),
        ("GPU_TEMP", "gauge", "GPU temperature (in C).",
         lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
        ("MEMORY_TEMP", "gauge", "Memory temperature (in C).",
         lambda n, h: _field(n, h, (n.NVML_FI_DEV_MEMORY_TEMP, 0))),
        ("POWER_USAGE", "gauge", "Power draw (in W).", lambda n, h: n.nvmlDeviceGetPowerUsage(h) / 1e3),
        ("POWER_MGMT_LIMIT", "gauge", "Power management limit (in W).",
         lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1e3),
        ("TOTAL_ENERGY_CONSUMPTION", "counter", "Total energy consumption since boot (in mJ).",
         lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h)),
        ("GPU_UTIL", "gauge", "GPU utilization (in %).", lambda n, h: n.nvmlDeviceGetUtilizationRates(h).gpu),
        ("MEM_COPY_UTIL", "gauge", "Memory utilization (in %).",
         lambda n, h: n.nvmlDeviceGetUtilizationRates(h).memory),
        ("ENC_UTIL", "gauge", "Encoder utilization (in %).", lambda n, h: n.nvmlDeviceGetEncoderUtilization(h)[0]),
        ("DEC_UTIL", "gauge", "Decoder utilization (in %).", lambda n, h: n.nvmlDeviceGetDecoderUtilization(h)[0]),
        ("FB_FREE", "gauge", "Framebuffer memory free (in MiB).", lambda n, h: _memory(n, h).free / MIB),
        ("FB_USED", "gauge", "Framebuffer memory used (in MiB).", lambda n, h: _memory(n, h).used / MIB),
        ("FB_TOTAL", "gauge", "Framebuffer memory in all (in MiB).", lambda n, h: _memory(n, h).total / MIB),
        ("PCIE_REPLAY_COUNTER", "counter", "Total number of PCIe retries.",
         lambda n, h: n.nvmlDeviceGetPcieReplayCounter(h)),
        ("PCIE_TX_THROUGHPUT", "gauge", "PCIe TX over the last 20 ms (in KB/s) via NVML.",
         lambda n, h: n.nvmlDeviceGetPcieThroughput(h, n.NVML_PCIE_UTIL_TX_BYTES)),
        ("PCIE_RX_THROUGHPUT", "gauge", "PCIe RX over the last 20 ms (in KB/s) via NVML.",
         lambda n, h: n.nvmlDeviceGetPcieThroughput(h, n.NVML_PCIE_UTIL_RX_BYTES)),
        ("NVLINK_BANDWIDTH_TOTAL", "counter", "Data over all NVLinks, both ways, since boot (in KiB).",
         lambda n, h: _field(n, h, (n.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS),
                             (n.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS))),
        ("CLOCK_THROTTLE_REASONS", "gauge", "Why the clocks are lowered now (bitmask of NVML's reasons).", _throttle),
        ("CLOCKS_EVENT_REASONS", "gauge", "The same under DCGM 4's name.", _throttle),
        ("POWER_VIOLATION", "counter", "Throttling duration due to power constraints (in ns, as NVML has it).",
         _violation("POWER")),
        ("THERMAL_VIOLATION", "counter", "Throttling duration due to thermal constraints (in ns, as NVML has it).",
         _violation("THERMAL")),
        ("ECC_DBE_VOL_TOTAL", "counter", "Total number of double-bit volatile ECC errors.",
         lambda n, h: n.nvmlDeviceGetTotalEccErrors(h, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC)),
    )
)  # fmt: skip


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def labels(library: Any, index: int, handle: Any) -> dict[str, str]:
    """dcgm-exporter's labels of one GPU."""
    return {
        "gpu": str(index),
        "UUID": _text(library.nvmlDeviceGetUUID(handle)),
        "pci_bus_id": _text(library.nvmlDeviceGetPciInfo(handle).busId),
        "device": f"nvidia{index}",
        "modelName": _text(library.nvmlDeviceGetName(handle)),
        "Hostname": socket.gethostname(),
        "DCGM_FI_DRIVER_VERSION": _text(library.nvmlSystemGetDriverVersion()),
    }


def collect(library: Any, profilers: dict[str, Profiler], measured: dict[int, dict[str, float]]) -> list[Family]:
    """Every family of every GPU. profilers: NVML's GPM by UUID, filled here; measured: DCGM's own profiling figures by
    index, which come first where there are any."""
    families = {one.name: Family(one.name, one.kind, one.help) for one in METRICS}
    families |= {name: Family(name, "gauge", text) for name, text in PROFILING.items()}
    for index in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(index)
        own = labels(library, index, handle)
        for one in METRICS:
            with contextlib.suppress(Exception):  # NVML answers 'not supported' per query and per board
                families[one.name].samples.append((own, float(one.read(library, handle))))
        profiler = profilers.setdefault(own["UUID"], Profiler(library, handle))
        for name, value in (measured.get(index) or profiler.read()).items():
            families[name].samples.append((own, value))
    return list(families.values())
