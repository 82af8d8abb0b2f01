"""Stands in for pynvml where there is no GPU: two GPUs with figures that a test knows, some of them not supported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml


class FakeNvml:
    """What gpu_metrics asks of pynvml. GPM counts samples: the n-th reading is n percent."""

    def __init__(self, gpus: int = 2, gpm: bool = True) -> None:
        self.gpus, self.gpm, self.taken = gpus, gpm, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    nvmlMemory_v2 = 2
    c_nvmlGpmMetricsGet_t = pynvml.c_nvmlGpmMetricsGet_t

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(busId=f"00000000:0{handle}:00.0".encode())

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b'NVIDIA "H200"'

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1980 if kind == pynvml.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return 40 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 512_345

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return 123_456_789

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=87, memory=55)

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> SimpleNamespace:
        return SimpleNamespace(free=3 * 2**20, used=5 * 2**20, total=8 * 2**20)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 0x40

    def nvmlDeviceGetEncoderUtilization(self, handle: int) -> list[int]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[tuple[int, int]]) -> list[Any]:
        return [
            SimpleNamespace(
                fieldId=field,
                nvmlReturn=0 if scope else pynvml.NVML_ERROR_NOT_SUPPORTED,
                valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
                value=SimpleNamespace(ullVal=2**33, uiVal=0),
            )
            for field, scope in fields
        ]

    def nvmlGpmQueryDeviceSupport(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(isSupportedDevice=self.gpm)

    def nvmlGpmSampleAlloc(self) -> Any:
        return pynvml.c_nvmlGpmSample_t()

    def nvmlGpmSampleGet(self, handle: int, sample: Any) -> None:
        self.taken += 1

    def nvmlGpmMetricsGet(self, asked: Any) -> Any:
        for place in range(asked.numMetrics):
            asked.metrics[place].value = 25.0
        return asked
