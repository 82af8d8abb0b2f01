"""The workflow that made a run, as files: from the commit that the run's newest record names, where git has it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from serveproof.results import Provenance

FOLDERS = ("config", "envs", "kernels", "profiles", "rules", "scripts", "serveproof")
FILES = ("CITATION.cff", "LICENSE", "Snakefile", "compare.py", "pyproject.toml")


def belongs(path: str) -> bool:
    """Whether a path of the repository is part of the workflow, or an expectation that it judges by."""
    top, _, rest = path.partition("/")
    return (bool(rest) and top in FOLDERS) or path in FILES or path.startswith("expectations_")


def write(root: Path, origin: Provenance | None, folder: Path) -> str:
    """Write the workflow's files into `folder`; returns in one sentence what they are, and what they can't be."""
    # a record may come from anyone: what is no hash is no argument of git's
    if origin and re.fullmatch(r"[0-9a-f]{40,64}", origin.commit) and _at_commit(root, origin.commit, folder):
        said = f"The workflow at commit {origin.commit}, at which the newest record of the run was made."
        return said + (" That tree had changes that no commit holds." if origin.dirty else "")
    _as_it_is(root, folder)
    commit = origin.commit if origin else "unknown"
    return f"The workflow as it was when this was published: the commit of the run ({commit}) is not at hand."


def _at_commit(root: Path, commit: str, folder: Path) -> bool:
    done = subprocess.run(["git", "archive", "--format=tar", commit], cwd=root, capture_output=True, check=False)
    if done.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [member for member in archive if member.isfile() and belongs(member.name)]
        if not {"Snakefile", "CITATION.cff"} <= {member.name for member in members}:
            return False
        archive.extractall(folder, members, filter="data")
    return True


def _as_it_is(root: Path, folder: Path) -> None:
    # folder by folder: an environment in the checkout has tens of thousands of files
    for path in sorted([*root.glob("*"), *(one for name in FOLDERS for one in (root / name).rglob("*"))]):
        name = path.relative_to(root).as_posix()
        if path.is_file() and belongs(name) and "__pycache__" not in path.parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
