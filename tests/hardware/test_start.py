"""A torch that can't use the GPU it is to run on is said in one line."""

from __future__ import annotations

import pytest
import torch

from serveproof.errors import UserError
from serveproof.hardware.start import start_torch


def test_a_cpu_build_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start_torch("cpu", 1)
    assert torch.get_num_threads() == 1
    with pytest.raises(UserError, match=r"can't use the NVIDIA GPU .*envs/gpu.txt.*hardware: cpu"):
        start_torch("cuda", 1)
