"""One run to publish: what its folder of records says of itself. Reads results/{hardware}; writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serveproof.errors import UserError
from serveproof.report.data import Machine, collect
from serveproof.results import Provenance


class Made(msgspec.Struct):
    """Of any record only where it comes from; None for a record that does not tell."""

    provenance: Provenance | None = None


@dataclass(frozen=True)
class Run:
    """One results/{hardware} folder.

    files: every file of it, relative to the folder, sorted. origins: the provenance of each record that tells one, by
    the same relative path. newest: the provenance of the record made last; None where no record tells one.
    """

    machine: Machine
    files: list[Path]
    origins: dict[Path, Provenance]
    newest: Provenance | None

    @property
    def name(self) -> str:
        """The folder's name: a hardware key, and the run's folder in the site."""
        return self.machine.folder.name

    @property
    def date_utc(self) -> str:
        """When its newest record was made."""
        return self.newest.date_utc if self.newest else self.machine.hardware.date_utc

    @property
    def commits(self) -> list[str]:
        """Every commit that a record was made at, the newest record's first."""
        newest_first = sorted(self.origins.values(), key=lambda one: one.date_utc, reverse=True)
        return list(dict.fromkeys(one.commit for one in newest_first))

    @property
    def dirty(self) -> bool:
        """Whether a record was made with changes that no commit holds."""
        return any(one.dirty for one in self.origins.values())

    @property
    def verdicts(self) -> dict[str, int]:
        """verdict -> how many figures got it, most first."""
        judged = self.machine.judgement.verdicts if self.machine.judgement else []
        return dict(Counter(one.verdict for one in judged).most_common())


def _made(path: Path) -> Made:
    """A JSON file that is no record, or is cut short, tells nothing here: the report names it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Made)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Made()


def read(folder: Path) -> Run:
    """One run. A folder without hardware.json, or with a broken record, is a UserError."""
    machine = collect(folder)
    # a name with a leading dot is a file that a killed job was still writing
    files = sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    told = {path: _made(folder / path).provenance for path in files if path.suffix == ".json"}
    origins = {path: origin for path, origin in told.items() if origin is not None}
    newest = max(origins.values(), key=lambda one: one.date_utc, default=None)
    return Run(machine, files, origins, newest)


def read_all(folders: list[Path]) -> list[Run]:
    """Every run, the newest first. Two folders of one name are a UserError: their pages would be one."""
    for name, count in Counter(folder.name for folder in folders).items():
        if count > 1:
            raise UserError(f"--results: two folders are named {name}; publish one of them, or rename a copy")
    return sorted(map(read, folders), key=lambda run: run.date_utc, reverse=True)
