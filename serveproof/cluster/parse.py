"""SLURM's ways of writing records, sizes and times."""

from __future__ import annotations

import re

UNITS_MB = {"": 1.0, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


def fields_of(line: str) -> dict[str, str]:
    """One `scontrol show ... -o` line as name -> value; a value that holds blanks keeps them."""
    found = re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(.*?)(?=\s+[A-Za-z][\w:/]*=|\s*$)", line.strip())
    return {name: value.strip() for name, value in found}


def megabytes_of(text: str) -> int:
    """`500M`, `7.5G` or `8000` in MB."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)[cn]?", text.strip())
    return round(float(found[1]) * UNITS_MB[found[2]]) if found else 0


def minutes_of(text: str) -> int | None:
    """SLURM's [days-][hours:]minutes:seconds in whole minutes; None for UNLIMITED, or for what is no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + (1 if seconds else 0)
