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
