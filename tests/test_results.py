"""Records: strict when read, whole or absent when written."""

from __future__ import annotations

from pathlib import Path

import pytest

from serveproof.errors import UserError
from serveproof.results import Judgement, Verdict, read, write, write_atomically

RECORD = Judgement("cpu", "expectations_cpu.json", 2.0, [Verdict("a/b", "speedup", "met", "inside", value=1.5)])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "judgement.json"
    write(path, RECORD)
    assert read(path, Judgement) == RECORD
    assert [p.name for p in path.parent.iterdir()] == ["judgement.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("keep", [0, 1, 40, 150])
def test_a_file_cut_short_is_named_with_its_mend(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "judgement.json"
    write(path, RECORD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"judgement\.json: not a whole Judgement .*delete it and run"):
        read(path, Judgement)


def test_an_absent_file_and_a_foreign_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; run `snakemake"):
        read(tmp_path / "none.json", Judgement)
    path = tmp_path / "judgement.json"
    path.write_text('{"hardware": "cpu", "extra": 1}')
    with pytest.raises(UserError, match="extra"):
        read(path, Judgement)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "judgement.json"
    write(path, RECORD)

    def half(temporary: Path) -> None:
        temporary.write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert read(path, Judgement) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == ["judgement.json"]
