"""Two sites made once: of the published records, as `make publish` makes it, and of records with hostile text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serveproof.publishing import runs, site
from tests.report import fake_results

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ("h200", "2x_h200", "2x_h100", "h100")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make publish PUBLISHED="h200 2x_h200 2x_h100 h100"` runs."""
    out = tmp_path_factory.mktemp("publishing") / "site"
    folders = [f"reports/published/{name}" for name in PUBLISHED]
    command = [sys.executable, "scripts/publish.py", "--results", *folders, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one machine whose records have markup in every free field, with inputs that lie beside the results."""
    folder = tmp_path_factory.mktemp("hostile-site")
    results = fake_results.write_machine(folder / "results" / "cpu", fake_results.HOSTILE)
    (folder / "results" / "inputs" / "model").mkdir(parents=True)
    (folder / "results" / "inputs" / "model" / "weights.safetensors").write_bytes(b"weights")
    site.write(runs.read_all([results]), ROOT, folder / "site")
    return folder / "site"
