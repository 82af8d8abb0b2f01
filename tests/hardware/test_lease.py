"""The lease: one holder at a time, dropped by the kernel when the holder is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serveproof.errors import UserError
from serveproof.hardware import key, lease
from serveproof.pairs import ROOT

HOLD = """
import time
from serveproof.hardware.lease import lease
with lease('cpu'):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks in a folder of the test's own: a real run on this machine is not to be waited for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_second_holder_waits_and_a_killed_one_holds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="still leased"), lease.lease("cpu", poll_s=0.01, limit_s=0.1):
        pass
    assert capsys.readouterr().err.count("waiting for cpu") == 1
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with lease.lease("cpu", poll_s=0.01) as name:
        assert name == ["cpu"]
    assert time.monotonic() - started < 5


def test_no_gpu_is_one_line() -> None:
    with pytest.raises(UserError, match="no NVIDIA GPU is visible"), lease.lease("cuda"):
        pass


def test_a_leased_gpu_is_the_only_visible_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [key.Gpu(0, "GPU-a", "NVIDIA H200"), key.Gpu(1, "GPU-b", "NVIDIA H200")]
    monkeypatch.setattr(lease, "visible_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lease.lease("cuda") as first, lease.lease("cuda") as second:
        assert (first, second) == (["GPU-a"], ["GPU-b"])
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_every_gpu_is_waited_for_and_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [key.Gpu(0, "GPU-b", "NVIDIA H200"), key.Gpu(1, "GPU-a", "NVIDIA H200")]
    monkeypatch.setattr(lease, "visible_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lease.lease("cuda", gpus=None) as held:
        assert held == ["GPU-a", "GPU-b"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
        with pytest.raises(UserError, match="still leased"), lease.lease("cuda", poll_s=0.01, limit_s=0.05):
            pass
    with (
        lease.lease("cuda"),
        pytest.raises(UserError, match="still leased"),
        lease.lease("cuda", gpus=None, poll_s=0.01, limit_s=0.05),
    ):
        pass
    # what was taken before it gave up is free again
    with lease.lease("cuda", gpus=None, limit_s=1) as held:
        assert len(held) == 2


def test_several_gpus_are_taken_and_no_more_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [key.Gpu(number, f"GPU-{name}", "NVIDIA H200") for number, name in enumerate("cab")]
    monkeypatch.setattr(lease, "visible_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lease.lease("cuda", gpus=2) as held:
        assert held == ["GPU-a", "GPU-b"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
        with lease.lease("cuda") as third:
            assert third == ["GPU-c"]
    with pytest.raises(UserError, match="4 GPUs are asked for, 3 visible"), lease.lease("cuda", gpus=4):
        pass
    with lease.lease("cpu", gpus=2) as held:
        assert held == ["cpu"]
