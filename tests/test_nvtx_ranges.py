"""Ranges cost nothing when they are off, and are seen by torch's profiler when they are on."""

from __future__ import annotations

import subprocess
import sys

from serveproof import nvtx_ranges

ON = """
import torch
from torch.profiler import profile
from serveproof.nvtx_ranges import ranged, span
def double(x): return x * 2
with profile() as seen:
    with span("schedule"):
        assert ranged("mlp", double)(3) == 6
names = {event.name for event in seen.events()}
assert {"schedule", "mlp"} <= names, names
assert torch.compile(ranged("mlp", double), fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""
ENGINE = """
import torch
from torch.profiler import profile
from serveproof import nvtx_ranges
from serveproof.distributed.equality import config_for
from serveproof.engine.loader import random_model
from serveproof.engine.parallel import SINGLE
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.start import start_with
from serveproof.engine.settings import Settings
torch.set_num_threads(1)
model = random_model(config_for(1), 1, torch.float32, "cpu", SINGLE)
engine = start_with(model, Settings(dtype="fp32", max_running=2, token_budget=32, max_model_len=64))
with profile() as seen:
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))
print(*sorted({event.name for event in seen.events()} & set(nvtx_ranges.PHASES)))
"""


def test_off_a_function_is_itself_and_spans_are_one_object() -> None:
    def function() -> None: ...

    assert not nvtx_ranges.ON
    assert nvtx_ranges.ranged("mlp", function) is function
    assert nvtx_ranges.span("decode") is nvtx_ranges.span("prefill")


def test_on_they_are_in_the_profile(monkeypatch) -> None:
    monkeypatch.setenv("SERVEPROOF_RANGES", "1")
    done = subprocess.run([sys.executable, "-c", ON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_on_every_phase_of_the_engine_has_its_name(monkeypatch) -> None:
    monkeypatch.setenv("SERVEPROOF_RANGES", "1")
    done = subprocess.run([sys.executable, "-c", ENGINE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()) == set(nvtx_ranges.PHASES)


def test_the_benchmark_measures_off_and_on() -> None:
    command = [sys.executable, "scripts/ranges_benchmark.py", "--calls", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1].isdecimal() for line in done.stdout.splitlines()[2:]] == [True] * 3
