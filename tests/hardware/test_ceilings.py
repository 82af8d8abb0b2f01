"""Ceilings of the CPU at hand: positive, and what one product reaches never beats them by much."""

from __future__ import annotations

import torch

from serveproof.hardware import ceilings


def test_cpu_ceilings() -> None:
    found = ceilings.measure("cpu", budget_s=0.02)
    assert found.read_bandwidth_bytes_per_s >= found.copy_bandwidth_bytes_per_s > 1e8
    assert set(found.matmul_flops_per_s) == {"float32", "bfloat16"}
    assert min(found.matmul_flops_per_s.values()) > 1e8
    assert f"{torch.get_num_threads()} threads" in found.how
