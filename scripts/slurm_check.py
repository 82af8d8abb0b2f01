"""`make slurm-check`: whether the cluster at hand can take a run with this profile and config; submits nothing of it.

Checks the profile's keys, then asks SLURM for partitions, nodes, GPUs, limits and accounts, then has one node of each
partition read a token file from the results folder. Every fault is one line; exit code 2 with any, else 0.

Needs SLURM's commands on this node. Writes the token file, and deletes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from serveproof import config, script
from serveproof.cluster import check, slurm
from serveproof.cluster.requests import Requests
from serveproof.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def known_keys() -> set[str]:
    """Every option of the Snakemake that is installed, its plugins' too, without the dashes."""
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser()
    return {name.lstrip("-") for action in parser._actions for name in action.option_strings if name.startswith("--")}


def read_profile(folder: Path) -> dict[str, Any]:
    """The profile's keys; without its file, or with something else in it, a UserError."""
    file = folder / "config.yaml" if folder.is_dir() else folder
    content = config.read_yaml(file) or {}
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a profile: it must be a mapping of Snakemake's options")
    unknown = check.profile_faults(content, known_keys(), str(file))
    if unknown:
        raise UserError(unknown[0])
    return content


def work(arguments: argparse.Namespace) -> None:
    profile = read_profile(arguments.profile)
    settings = config.resolve(config.merged(arguments.configfile, ROOT), ROOT)
    requests = Requests(settings.machines, config.read_yaml(ROOT / "config/resources.yaml"), ROOT / "results")
    pairs = sorted(next(iter(settings.cases.values())))
    found, notes = check.inspect(requests.every(pairs, settings.values), profile, slurm.look(), requests.folder)
    for line in (*found, *(f"note: {note}" for note in notes)):
        script.say(arguments.log, f"serveproof: {line}")
    if found:
        raise SystemExit(2)
    partitions = sorted({one.partition or "(default)" for one in settings.machines.values()})
    print(f"{', '.join(settings.machines)} on {', '.join(partitions)}: the cluster can take this run")


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--profile", type=Path, default=ROOT / "profiles/slurm", help="the profile's folder")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="as given to snakemake")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
