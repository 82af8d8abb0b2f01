"""Peak memory and page faults of a side that allocates a known amount."""

from __future__ import annotations

import subprocess
import sys

from serveproof.pairs import ROOT

# In a process of its own, as the harness does: freed memory of other tests would be used again.
PROBE = """
import sys, torch
from serveproof.bench import memory
torch.set_num_threads(1)
build = lambda inputs: lambda: torch.ones(int(sys.argv[1]), dtype=torch.uint8).max()
found = memory.peak_of(build, {"x": torch.zeros(2**20, dtype=torch.uint8), "n": 3}, "cpu")
assert found.major_faults == 0, "nothing was read from disk"
print(found.peak_bytes, found.minor_faults)
"""


def probe(size: int) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(size)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    peak, faults = done.stdout.split()
    return int(peak), int(faults)


def test_peak_and_faults_follow_what_is_allocated() -> None:
    small, large = probe(8 * 2**20), probe(72 * 2**20)
    assert 60 * 2**20 < large[0] - small[0] < 80 * 2**20
    assert large[0] > 72 * 2**20
    # two runs touch 64 MiB more each; with huge pages there would be fewer faults, never more
    assert 2 * 60 * 2**20 / 2**21 < large[1] - small[1] < 2.5 * 64 * 2**20 / 4096
