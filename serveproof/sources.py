"""Which files of this repository a Python file depends on: its import closure, by syntax, without importing anything.

Snakemake doesn't follow imports, so every rule lists this closure among its inputs: change a module and exactly the
rules that run it run again.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = "serveproof"
# The end of a file that doesn't run when it is imported.
MAIN = re.compile(rb"""\n+if __name__ == "__main__":\n(?:(?: {4}.*)?\n)*\Z""")


@cache  # the rules' closures overlap: to parse a file for each of them took half of Snakemake's start
def _imported_files(path: Path, text: str, root: Path) -> list[Path]:
    """Files that importing anywhere in `path` runs; `from a import b` also as `a.b`, for b may be a module."""
    modules = set()
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted({file for module in modules for file in _files_of(module, root)})


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The files that importing `module` runs: each parent package's __init__.py and the module itself."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return
    for end in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                yield file


def closure(start: str | Path, root: str | Path = ".") -> list[str]:
    """`start` and every file under `root` that it imports, directly or not: sorted paths relative to `root`.

    Relative imports are not followed: ruff's configuration bans none, but the package uses absolute ones throughout,
    and tests/test_sources.py holds it to that.
    """
    root = Path(root)
    seen: set[Path] = set()
    waiting = [root / start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        waiting += _imported_files(path, path.read_text(), root)
    return sorted(str(path.relative_to(root)) for path in seen)


def sha_of(files: Iterable[str | Path]) -> str:
    """A short SHA-256 over the files' contents, in the order given; what runs only as a program isn't part of it."""
    digest = hashlib.sha256()
    for file in files:
        content = MAIN.sub(b"\n", Path(file).read_bytes())
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]
