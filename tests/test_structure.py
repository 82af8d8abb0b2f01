"""What holds the tree together: import contracts, short files, and kernels/ as loose files that nothing imports."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cli", "scripts", "serveproof")
PROGRAMS = [ROOT / "compare.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
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


def test_only_our_two_packages_are_installed() -> None:
    """Never kernels: an importable folder of that name breaks some releases of transformers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = find_packages(str(ROOT), include=project["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in found} == {"serveproof", "cli"}


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
