"""The host's metrics, named by Prometheus' rules (base units, _total), and whether there are GPU series."""

from __future__ import annotations

import psutil

from serveproof.hardware.clocks import cpu_pressure_percent
from serveproof.telemetry.exposition import Family


def collect() -> list[Family]:
    """Processor time, memory, load and pressure of this host."""
    memory, cpu = psutil.virtual_memory(), psutil.cpu_times()
    seconds = Family("serveproof_host_cpu_seconds_total", "counter", "Processor time of all CPUs by mode.")
    for mode in ("user", "system", "idle", "iowait"):
        if hasattr(cpu, mode):
            seconds.samples.append(({"mode": mode}, float(getattr(cpu, mode))))
    families = [
        seconds,
        _one("serveproof_host_cpus", "Logical CPUs.", float(psutil.cpu_count() or 0)),
        _one("serveproof_host_memory_size_bytes", "Memory.", float(memory.total)),
        _one("serveproof_host_memory_available_bytes", "Memory that a program could get.", float(memory.available)),
        _one("serveproof_host_load1", "Load average of a minute.", psutil.getloadavg()[0]),
    ]
    pressure = cpu_pressure_percent()
    if pressure is not None:
        text = "Share of the last 10 s in which some task waited for a CPU."
        families.append(_one("serveproof_host_cpu_pressure_ratio", text, pressure / 100))
    return families


def _one(name: str, text: str, value: float) -> Family:
    return Family(name, "gauge", text, [({}, value)])


def gpu_presence(count: int, reason: str) -> list[Family]:
    """How many GPUs there are series of, and why there are none."""
    families = [_one("serveproof_gpus", "GPUs that this exporter has series of.", float(count))]
    if reason:
        text = "1 while there are no GPU series; the label says why."
        families.append(Family("serveproof_gpu_series_missing", "gauge", text, [({"reason": reason}, 1.0)]))
    return families
