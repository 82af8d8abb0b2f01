"""Counting the kernels of one call with PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def count_kernels(run: Callable[[], Any]) -> int:
    """GPU kernels that one call runs, copies and fills not among them; 0 where the profiler sees none (no CUDA)."""
    if not torch.cuda.is_available():
        return 0
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)
