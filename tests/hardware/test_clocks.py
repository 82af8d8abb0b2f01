"""Throttle reasons and pressure."""

from __future__ import annotations

from pathlib import Path

import pytest

from serveproof.hardware import clocks


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
