"""Debian's Prometheus, installed where it is absent; without it the tests are skipped with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def prometheus_programs() -> tuple[str, str]:
    """(prometheus, promtool)"""
    said = subprocess.run(["sh", ROOT / "tests/install_prometheus.sh"], capture_output=True, text=True, check=False)
    found = shutil.which("prometheus"), shutil.which("promtool")
    if not all(found):
        pytest.skip(said.stdout.strip() or "no prometheus")
    return str(found[0]), str(found[1])
