"""The hardware key: product names, CUDA_VISIBLE_DEVICES, no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serveproof.errors import UserError
from serveproof.hardware import key
from serveproof.hardware.key import Gpu
from serveproof.pairs import ROOT

A, B, C = (Gpu(i, f"GPU-{letter * 8}", "NVIDIA H200") for i, letter in enumerate("abc"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H200 NVL", "h200_nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx_6000_ada"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA", "gpu"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert key.slug(name) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [A, B, C]),
        ("", []),
        ("-1", []),
        ("1", [B]),
        ("2,0", [C, A]),
        ("0,7,1", [A]),  # CUDA stops at the first entry that names no GPU
        ("GPU-bb", [B]),
        ("GPU-", []),  # ambiguous
        (" 1 , 2 ", [B, C]),
    ],
)
def test_visible_devices(setting: str | None, expected: list[Gpu]) -> None:
    assert key.select_visible([A, B, C], setting) == expected


@pytest.mark.parametrize(("gpus", "expected"), [([], "cpu"), ([A], "h200"), ([A, B], "2x_h200")])
def test_detect(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], expected: str) -> None:
    monkeypatch.setattr(key, "visible_gpus", lambda: gpus)
    assert key.detect() == expected


def test_gpus_of_two_kinds_have_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "visible_gpus", lambda: [A, Gpu(1, "GPU-x", "NVIDIA L4")])
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        key.detect()


def test_results_never_carry_another_machines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "visible_gpus", list)
    key.require("cpu")
    monkeypatch.setattr(key, "visible_gpus", lambda: [A])
    key.require("cpu")
    key.require("h200")
    monkeypatch.setattr(key, "visible_gpus", list)
    with pytest.raises(UserError, match=r"'h200' but this machine is 'cpu'.*hardware: auto"):
        key.require("h200")


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, serveproof.config, serveproof.workflow, serveproof.expectations; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
