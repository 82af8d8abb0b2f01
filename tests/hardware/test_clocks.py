"""Throttle reasons and pressure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from serveproof.hardware import clocks
from serveproof.hardware.key import Gpu


def test_throttle_bits_have_names() -> None:
    assert clocks.throttle_names(0) == []
    assert clocks.throttle_names(0x4 | 0x40) == ["sw_power_cap", "hw_thermal_slowdown"]
    # the software power cap is how a loaded GPU runs: recorded, not a reason to throw a round away
    assert "sw_power_cap" not in clocks.SLOWED
    assert set(clocks.throttle_names(0x8 | 0x20 | 0x40 | 0x80)) == clocks.SLOWED


@pytest.mark.skipif(not Path("/proc/pressure/cpu").exists(), reason="this kernel has no pressure information")
def test_pressure_is_a_share() -> None:
    found = clocks.cpu_pressure_percent()
    assert found is not None
    assert 0 <= found <= 100


class FakeNvml:
    """Two GPUs: the first slowed down by heat, the second at its power cap; neither tells its temperature."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    bits: ClassVar = {"GPU-a": 0x40, "GPU-b": 0x4}

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=141 * 10**9)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1500, 2: 3201}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        raise RuntimeError("not supported")

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 699_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.bits[handle]


def test_states_and_slowdowns_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "nvml", FakeNvml)
    gpus = [Gpu(i, uuid, "NVIDIA H200") for i, uuid in enumerate(FakeNvml.bits)]
    monkeypatch.setattr(clocks, "visible_gpus", lambda: gpus)
    first, second = clocks.device_states()
    assert (first.index, second.index, first.sm_clock_mhz, first.memory_clock_mhz) == (0, 1, 1500, 3201)
    assert (first.sm_clock_max_mhz, first.temperature_c, first.power_w) == (1980, None, 699.5)
    assert (first.throttle_reasons, second.throttle_reasons) == (["hw_thermal_slowdown"], ["sw_power_cap"])
    assert clocks.slowdown_reasons() == ["hw_thermal_slowdown"]


def test_no_driver_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "nvml", lambda: None)
    assert clocks.device_states() == clocks.slowdown_reasons() == []
