"""Prometheus' text format (version 0.0.4). Written here because prometheus_client ends every counter's name in _total,
and DCGM's names are what dashboards ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Family:
    """One metric: its samples are pairs of labels and value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def text(families: Iterable[Family]) -> str:
    """The page; a family without samples is left out."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        told = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {family.name} {told}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.samples:
            inner = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
            lines.append(f"{family.name}{{{inner}}} {value!r}" if inner else f"{family.name} {value!r}")
    return "\n".join(lines) + "\n"
