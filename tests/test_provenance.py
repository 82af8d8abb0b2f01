"""Provenance: the commit, the lock and whether it was followed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serveproof import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SERVEPROOF_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "driver_version", lambda: "")
    (tmp_path / "envs").mkdir()
    found = provenance.versions()
    lines = [f"{name}=={version.split('+')[0]}" for name, version in found.items() if name != "python"]
    (tmp_path / "envs/cpu.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def test_commit_and_dirt(checkout: Path) -> None:
    git(checkout, "init")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-m", "one")
    clean = provenance.collect(checkout)
    assert len(clean.commit) == 40
    assert not clean.dirty
    (checkout / "new.txt").write_text("")
    assert provenance.collect(checkout).dirty


def test_a_copy_without_git_is_told_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    assert provenance.collect(checkout).commit.startswith("unknown")
    monkeypatch.setenv("SERVEPROOF_COMMIT", "abc")
    assert provenance.collect(checkout).commit == "abc"


def test_an_environment_off_the_lock_is_said(checkout: Path) -> None:
    assert provenance.collect(checkout).lock_file == "envs/cpu.txt"
    lock = checkout / "envs/cpu.txt"
    lock.write_text(lock.read_text().replace("polars==", "polars==0."))
    assert provenance.collect(checkout).lock_file == "envs/cpu.txt (not followed)"


def test_the_environment_line_names_torch_and_the_driver() -> None:
    line = provenance.environment()
    assert "torch=" in line
    assert "driver=" in line
