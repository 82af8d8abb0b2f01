"""The record of a machine: of the device that was measured, and no other."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from serveproof.results import Ceilings, DeviceState, HardwareRecord, read


def test_a_gpu_beside_the_measured_cpu_is_not_in_its_record(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.clocks, "device_states", lambda: [DeviceState(0, "NVIDIA H200", 141 * 10**9)])
    monkeypatch.setattr(script.ceilings, "measure", lambda device: Ceilings(1.0, 1.0, {"float32": 1.0}, device))
    out = tmp_path / "hardware.json"
    monkeypatch.setattr("sys.argv", ["hardware", "--key", "cpu", "--out", str(out)])
    script.main()
    found = read(out, HardwareRecord)
    assert (found.key, found.device, found.states, found.count) == ("cpu", "cpu", [], 1)
    assert found.name == found.cpu_model
    assert found.ceilings.how == "cpu"
