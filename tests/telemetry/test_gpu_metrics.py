"""GPU metrics under DCGM's names: units, labels, and nothing where NVML says nothing."""

from __future__ import annotations

import math
import os
import stat
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serveproof.telemetry import exposition, gpu_metrics, gpu_profiling
from serveproof.telemetry.gpu_profiling import Dcgmi, Profiler
from tests.telemetry.fake_nvml import FakeNvml


def read(page: str) -> dict[tuple[str, str], float]:
    """(name, gpu) -> value, by prometheus_client's own parser, which adds _total to a counter's name."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name.removesuffix("_total"), sample.labels.get("gpu", "")] = sample.value
    return found


def test_units_and_labels_are_dcgm_s() -> None:
    page = exposition.text(gpu_metrics.collect(FakeNvml(), {}, {}))
    found = read(page)
    assert found["DCGM_FI_DEV_SM_CLOCK", "1"] == 1980
    assert found["DCGM_FI_DEV_POWER_USAGE", "0"] == pytest.approx(512.345)
    assert found["DCGM_FI_DEV_FB_USED", "0"] == 5
    assert found["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "0"] == 123_456_789
    assert found["DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "0"] == 2 * 2**33
    assert found["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "1"] == 64
    assert "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter" in page
    labels = next(s.labels for f in text_string_to_metric_families(page) for s in f.samples)
    assert {"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname"} <= set(labels)
    assert (labels["device"], labels["UUID"], labels["modelName"]) == ("nvidia0", "GPU-0", 'NVIDIA "H200"')
    assert labels["pci_bus_id"] == "00000000:00:00.0"


def test_what_is_not_supported_is_no_series() -> None:
    page = exposition.text(gpu_metrics.collect(FakeNvml(), {}, {}))
    assert "ENC_UTIL" not in page
    assert "MEMORY_TEMP" not in page
    assert "DCGM_FI_PROF" not in page, "GPM has nothing to say from one sample"


def test_gpm_s_percent_are_dcgm_s_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_profiling, "SHORTEST_S", 0.0)
    library, profilers = FakeNvml(gpus=1), dict[str, Profiler]()
    gpu_metrics.collect(library, profilers, {})
    found = read(exposition.text(gpu_metrics.collect(library, profilers, {})))
    assert found["DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "0"] == 0.25
    assert found["DCGM_FI_PROF_PCIE_TX_BYTES", "0"] == 25 * 2**20
    assert library.taken == 2
    assert gpu_metrics.collect(FakeNvml(gpus=1, gpm=False), {}, {})


def test_dcgm_s_own_figures_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dcgmi"
    values = "  ".join(f"0.{number:03d}" for number in range(1, 12))
    program.write_text(f'#!/bin/sh\necho "#Entity GRACT SMACT"\necho "ID"\necho "GPU 0  {values}  N/A"\nsleep 30\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    dcgmi = Dcgmi()
    try:
        until = time.monotonic() + 5
        while not dcgmi.newest and time.monotonic() < until:
            time.sleep(0.02)
        found = read(exposition.text(gpu_metrics.collect(FakeNvml(gpus=1), {}, dcgmi.newest)))
    finally:
        dcgmi.stop()
    assert found["DCGM_FI_PROF_GR_ENGINE_ACTIVE", "0"] == 0.001
    assert found["DCGM_FI_PROF_DRAM_ACTIVE", "0"] == 0.005
    assert ("DCGM_FI_PROF_NVLINK_RX_BYTES", "0") not in found, "N/A is no figure"


def test_a_label_can_hold_anything() -> None:
    hostile = 'a"b\\c\nd'
    family = exposition.Family("x", "gauge", "help\nwith lines", [({"l": hostile}, math.inf)])
    parsed = next(iter(text_string_to_metric_families(exposition.text([family])))).samples[0]
    assert (parsed.labels["l"], parsed.value) == (hostile, math.inf)
