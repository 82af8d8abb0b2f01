"""What holds the tree together: import contracts, short files, and kernels/ as loose files that nothing imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [ROOT / "compare.py", *(ROOT / "scripts").glob("*.py"), *(ROOT / "serveproof").rglob("*.py")]
SOURCES = [*PROGRAMS, *(ROOT / "kernels").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
MOST_LINES = 400


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_contracts_hold() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept, 0 broken" in done.stdout


def test_kernels_is_a_folder_of_loose_files() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_imports_kernels(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not [name for name in names if name.split(".")[0] == "kernels"]


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
