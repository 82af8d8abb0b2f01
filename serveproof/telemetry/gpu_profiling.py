"""The profiling ratios (how busy tensor pipes, DRAM, PCIe and NVLink were), under DCGM's names: by NVML's GPM where the
GPU has it (Hopper and later), or by `dcgmi dmon` where DCGM is installed.

GPM needs two samples: a reading is over the time since the reading before, so the first one is empty.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from typing import Any

MIB = 2**20
PROFILING = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "Ratio of time the graphics engine is active.",
    "DCGM_FI_PROF_SM_ACTIVE": "The ratio of cycles an SM has at least 1 warp assigned.",
    "DCGM_FI_PROF_SM_OCCUPANCY": "The ratio of warps resident on an SM over its most.",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "Ratio of cycles the tensor (HMMA) pipe is active.",
    "DCGM_FI_PROF_DRAM_ACTIVE": "Ratio of cycles the device memory interface is active sending or receiving data.",
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE": "Ratio of cycles the fp64 pipes are active.",
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": "Ratio of cycles the fp32 pipes are active.",
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE": "Ratio of cycles the fp16 pipes are active.",
    "DCGM_FI_PROF_PCIE_TX_BYTES": "Bytes a second over PCIe from the GPU.",
    "DCGM_FI_PROF_PCIE_RX_BYTES": "Bytes a second over PCIe to the GPU.",
    "DCGM_FI_PROF_NVLINK_TX_BYTES": "Bytes a second over NVLink from the GPU.",
    "DCGM_FI_PROF_NVLINK_RX_BYTES": "Bytes a second over NVLink to the GPU.",
}
# name -> (GPM's metric, what its unit is of ours); nvml.h: ratios in percent, traffic in MiB/s
GPM = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": ("GRAPHICS_UTIL", 0.01),
    "DCGM_FI_PROF_SM_ACTIVE": ("SM_UTIL", 0.01),
    "DCGM_FI_PROF_SM_OCCUPANCY": ("SM_OCCUPANCY", 0.01),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("ANY_TENSOR_UTIL", 0.01),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("DRAM_BW_UTIL", 0.01),
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE": ("FP64_UTIL", 0.01),
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": ("FP32_UTIL", 0.01),
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE": ("FP16_UTIL", 0.01),
    "DCGM_FI_PROF_PCIE_TX_BYTES": ("PCIE_TX_PER_SEC", MIB),
    "DCGM_FI_PROF_PCIE_RX_BYTES": ("PCIE_RX_PER_SEC", MIB),
    "DCGM_FI_PROF_NVLINK_TX_BYTES": ("NVLINK_TOTAL_TX_PER_SEC", MIB),
    "DCGM_FI_PROF_NVLINK_RX_BYTES": ("NVLINK_TOTAL_RX_PER_SEC", MIB),
}
# DCGM's field ids 1001 to 1012 are these names in this order (dcgm_fields.h)
DMON_FIELDS = dict(zip(PROFILING, range(1001, 1013), strict=True))
SHORTEST_S = 0.1


class Profiler:
    """One GPU's GPM: two samples in turns."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.samples: list[Any] = []
        self.taken_s = 0.0
        self.last: dict[str, float] = {}
        with contextlib.suppress(Exception):  # an older driver, or a GPU without GPM
            if library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                self.samples = [library.nvmlGpmSampleAlloc() for _ in range(2)]

    def read(self) -> dict[str, float]:
        """Figures since the reading before; {} at first, and where there is no GPM."""
        if not self.samples or time.monotonic() - self.taken_s < SHORTEST_S:
            return self.last
        try:
            self.library.nvmlGpmSampleGet(self.handle, self.samples[1])
            self.last = self._between() if self.taken_s else {}
        except Exception:  # refused now: another client may hold the counters
            self.last = {}
        self.taken_s = time.monotonic()
        self.samples.reverse()
        return self.last

    def _between(self) -> dict[str, float]:
        asked = self.library.c_nvmlGpmMetricsGet_t()
        asked.version = self.library.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(GPM)
        asked.sample1, asked.sample2 = self.samples
        for place, (metric, _) in enumerate(GPM.values()):
            asked.metrics[place].metricId = getattr(self.library, f"NVML_GPM_METRIC_{metric}")
        told = self.library.nvmlGpmMetricsGet(asked)
        return {
            name: told.metrics[place].value * scale
            for place, (name, (_, scale)) in enumerate(GPM.items())
            if told.metrics[place].nvmlReturn == 0
        }


class Dcgmi:
    """`dcgmi dmon` in the background, its newest row of each GPU; nothing where it is not installed."""

    def __init__(self) -> None:
        self.newest: dict[int, dict[str, float]] = {}
        self.process: subprocess.Popen[str] | None = None
        program = shutil.which("dcgmi")
        if program:
            fields = ",".join(map(str, DMON_FIELDS.values()))
            self.process = subprocess.Popen(
                [program, "dmon", "-e", fields, "-d", "1000"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self.process  # noqa: S101 - started before the thread
        assert self.process.stdout  # noqa: S101 - asked for above
        for line in self.process.stdout:
            row = dmon_row(line)
            if row is not None:
                self.newest[row[0]] = row[1]
        self.newest.clear()

    def stop(self) -> None:
        """End the program."""
        if self.process:
            self.process.terminate()
            self.process.wait()


def dmon_row(line: str) -> tuple[int, dict[str, float]] | None:
    """A line `GPU 0  0.98  0.95 ...` of dcgmi dmon as (GPU, figures); None for headings; N/A is left out."""
    words = line.split()
    if len(words) != 2 + len(DMON_FIELDS) or words[0] != "GPU" or not words[1].isdecimal():
        return None
    figures = {}
    for name, word in zip(DMON_FIELDS, words[2:], strict=True):
        with contextlib.suppress(ValueError):
            figures[name] = float(word)
    return int(words[1]), figures
