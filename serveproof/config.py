"""The user's settings: validated against the schemas, resolved for this machine. Never imports torch.

Every fault is a UserError that names the key and the mend, before anything runs.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from serveproof import pairs
from serveproof.errors import UserError
from serveproof.hardware import key

# A minute on two CPU cores, seconds on a GPU; what decides a gate of 2 % takes tens of thousands of tokens.
AUTO_TOKENS = {"cpu": 11008, "cuda": 131072}
AUTO_TIERS = {"cpu": ("cpu",), "cuda": ("gpu", "reference")}


@dataclass(frozen=True)
class Settings:
    """What one run is to do. cases: pair -> list of {case, tier, axes, tolerance_eps}."""

    hardware: str
    threads: int
    cases: dict[str, list[dict[str, Any]]]
    values: dict[str, Any]


def read_yaml(path: Path) -> Any:
    """A YAML file's content; a file that is absent or not YAML is a UserError."""
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None


def _line(error: jsonschema.ValidationError, name: str) -> str:
    """One line for one schema fault: file, key, what is wrong, the mend."""
    place = ".".join(str(part) for part in error.absolute_path)
    instance: Any = error.instance
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    if error.validator == "additionalProperties":
        known = list(schema.get("properties", {}))
        unknown = sorted({str(key) for key in instance} - set(known))[0]
        full = f"{place}.{unknown}" if place else unknown
        near = difflib.get_close_matches(unknown, known, n=1)
        mend = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        return f"{name}: unknown key '{full}'; {mend}"
    described = schema.get("description", "")
    hint = f" ({described})" if described else ""
    return f"{name}: key '{place or 'the whole file'}'{hint}: {error.message}"


def validate(content: Any, schema_file: Path, name: str) -> None:
    """Hold `content` against a schema file; the first fault is raised as one line."""
    validator = jsonschema.Draft202012Validator(read_yaml(schema_file))
    faults = sorted(validator.iter_errors(content), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if faults:
        raise UserError(_line(faults[0], name))


def _chosen_pairs(wanted: Any, workloads: dict[str, Any], root: Path) -> list[str]:
    there = pairs.names(root)
    names = there if wanted == "all" else list(wanted)
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"kernels/ has: {', '.join(there)}"
            raise UserError(f"config/config.yaml: key 'pairs': pair '{name}' doesn't exist; {hint}")
        if name not in workloads:
            raise UserError(f"config/workloads.yaml: no entry for pair '{name}'; add one with its cases")
    return names


def resolve(config: dict[str, Any], root: Path = pairs.ROOT, cores: int | None = None) -> Settings:
    """Validate everything a run depends on and resolve `auto`s.

    cores: what Snakemake was given; None when it is not known (a command line without --cores).
    """
    validate(config, root / "config/config.schema.yaml", "config/config.yaml")
    workloads = read_yaml(root / "config/workloads.yaml") or {}
    validate(workloads, root / "config/workloads.schema.yaml", "config/workloads.yaml")
    if cores == 0:
        raise UserError("--cores 0: nothing can run on no cores; use `--cores all`, or a number from 1 up")
    for name in ("model", "text"):
        if config[name] == "default":
            continue
        if not Path(config[name]).expanduser().exists():
            raise UserError(f"config/config.yaml: key '{name}': {config[name]} doesn't exist; give a path or `default`")
        config = {**config, name: str(Path(config[name]).expanduser())}
    windows = config["perplexity"]
    if windows["stride_tokens"] >= windows["window_tokens"]:
        raise UserError(
            "config/config.yaml: key 'perplexity.stride_tokens': must be less than perplexity.window_tokens"
        )
    hardware = key.detect() if config["hardware"] == "auto" else config["hardware"]
    if windows["tokens"] == "auto":
        config = {**config, "perplexity": {**windows, "tokens": AUTO_TOKENS[key.device_of(hardware)]}}
    tiers = AUTO_TIERS[key.device_of(hardware)] if config["tiers"] == "auto" else tuple(config["tiers"])
    cases = {
        name: [{"tier": tier, **case} for tier in tiers for case in workloads[name].get(tier, [])]
        for name in _chosen_pairs(config["pairs"], workloads, root)
    }
    for name, entries in cases.items():
        seen = [case["case"] for case in entries]
        if len(set(seen)) != len(seen):
            raise UserError(f"config/workloads.yaml: pair '{name}' has two cases of one name; rename one")
    threads = (cores or 1) if config["threads"] == "all" else config["threads"]
    return Settings(hardware=hardware, threads=threads, cases=cases, values=config)
