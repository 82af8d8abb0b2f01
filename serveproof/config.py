"""The user's settings: validated against the schemas, resolved for this machine. Never imports torch.

Every fault is a UserError that names the key and the mend, before anything runs.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from serveproof import pairs
from serveproof.errors import UserError
from serveproof.hardware.machines import Machine, machines_of

# A minute on two CPU cores, seconds on a GPU; what decides a gate of 2 % takes tens of thousands of tokens.
AUTO_TOKENS = {"cpu": 11008, "cuda": 131072}
# The model of the key `model`, as the rule prepare_model leaves it.
PREPARED = "prepared"
# Seconds a scenario on two CPU cores with real weights, and enough requests in them; on a GPU a shape that fills it,
# lengths as in chats, and MLPerf's SLO.
AUTO_SERVING = {
    "cpu": {
        "model": PREPARED,
        "duration_s": 10,
        "concurrency": 32,
        "prompts": "lognormal:16:0.5:48",
        "outputs": "lognormal:8:0.4:16",
        "long_tokens": 256,
        "slo": "2000:200",
        "server_options": "--token-budget 64",
        "client_processes": 1,
    },
    "cuda": {
        "model": "llama-1b",
        "duration_s": 30,
        "concurrency": 256,
        "prompts": "lognormal:256:0.8:1024",
        "outputs": "lognormal:128:0.6:512",
        "long_tokens": 6144,
        "slo": "server",
        "server_options": "--max-running 256",
        "client_processes": 4,
    },
}
# Precisions that are calibrated on tokens of the text (serveproof.engine.calibration's, which imports torch).
CALIBRATED = ("int4_group32", "int4_awq", "int8_smoothquant", "int8_gptq")
AUTO_TIERS = {"cpu": ("cpu",), "cuda": ("gpu", "reference")}


@dataclass(frozen=True)
class Settings:
    """What one run is to do, on one kind of machine or on several.

    machines, tokens, serving: by hardware key. cases: hardware key -> pair -> list of {case, tier, axes,
    tolerance_eps}.
    """

    machines: dict[str, Machine]
    cases: dict[str, dict[str, list[dict[str, Any]]]]
    tokens: dict[str, int]
    serving: dict[str, dict[str, Any]]
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


def read(root: Path = pairs.ROOT) -> dict[str, Any]:
    """config/config.yaml by itself, validated."""
    content = read_yaml(root / "config/config.yaml")
    validate(content, root / "config/config.schema.yaml", "config/config.yaml")
    return dict(content)


def merged(files: list[Path], root: Path = pairs.ROOT) -> dict[str, Any]:
    """config/config.yaml with further files over it, as Snakemake's --configfile does."""
    found = read(root)
    for file in files:
        for name, value in (read_yaml(file) or {}).items():
            both = isinstance(value, dict) and isinstance(found.get(name), dict) and name != "hardware"
            found[name] = {**found[name], **value} if both else value
    return found


def _with_numbers(value: Any) -> Any:
    """Snakemake's --config leaves a number inside a mapping as text (`--config measure='{rounds: 5}'`)."""
    if isinstance(value, dict):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_numbers(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value) if "." in value else int(value)
    return value


def _with_counts(machines: dict[str, Any]) -> dict[str, Any]:
    """The same for a mapping of machines, where only a count is a number: an account may be all digits."""
    return {
        key: {name: _with_numbers(value) if name in ("cpus", "gpu") else value for name, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for key, entry in machines.items()
    }


def _checked_path(config: dict[str, Any], name: str) -> str:
    """`default`, or a path that exists, with its ~ resolved: the shell of a job would not."""
    if config[name] == "default":
        return "default"
    path = Path(config[name]).expanduser()
    if not path.exists():
        raise UserError(f"config/config.yaml: key '{name}': {config[name]} doesn't exist; give a path or `default`")
    return str(path)


def _check_windows(windows: dict[str, Any], tokens: int, text: str) -> None:
    """What can't make two windows, seen before anything runs: a text's tokens have a byte each, or more."""
    window = windows["window_tokens"]
    if windows["stride_tokens"] >= window:
        raise UserError(
            "config/config.yaml: key 'perplexity.stride_tokens': must be less than perplexity.window_tokens"
        )
    if tokens <= window:
        raise UserError("config/config.yaml: key 'perplexity.tokens': must be more than perplexity.window_tokens")
    served = windows["served"]
    if served["paths"]:
        if served["stride_tokens"] >= served["window_tokens"]:
            raise UserError(
                "config/config.yaml: key 'perplexity.served.stride_tokens': must be less than served.window_tokens"
            )
        if served["window_tokens"] > window:
            raise UserError(
                "config/config.yaml: key 'perplexity.served.window_tokens': must be at most perplexity.window_tokens"
            )
        if served["tokens"] <= served["window_tokens"]:
            raise UserError(
                "config/config.yaml: key 'perplexity.served.tokens': must be more than served.window_tokens"
            )
    if text == "default":
        return
    if not Path(text).is_file():
        raise UserError(f"config/config.yaml: key 'text': {text} is not a file; give a UTF-8 text file or `default`")
    if Path(text).stat().st_size <= window:
        raise UserError(
            f"config/config.yaml: key 'text': {text} has {Path(text).stat().st_size} bytes, and one window takes "
            f"{window} tokens; give a longer text, or a smaller perplexity.window_tokens"
        )


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


def one_node(values: dict[str, Any]) -> None:
    """UserError where a rule of this run is over several nodes: without a cluster there is one."""
    for name, switch in (("distributed", "model"), ("validation", "ranks")):
        nodes = values[name]["nodes"]
        if nodes > 1 and values[name][switch] != "none":
            raise UserError(
                f"config/config.yaml: key '{name}.nodes': {nodes} nodes are a SLURM job; set 1, or run with "
                f"--profile profiles/slurm"
            )


def resolve(config: dict[str, Any], root: Path = pairs.ROOT, cores: int | None = None) -> Settings:
    """Validate everything a run depends on and resolve `auto`s.

    cores: what Snakemake was given; None when it is not known (a command line without --cores).
    """
    nested = {key: _with_numbers(value) for key, value in config.items() if isinstance(value, dict)}
    if isinstance(config.get("hardware"), dict):
        nested["hardware"] = _with_counts(config["hardware"])
    config = {**config, **nested}
    validate(config, root / "config/config.schema.yaml", "config/config.yaml")
    workloads = read_yaml(root / "config/workloads.yaml") or {}
    validate(workloads, root / "config/workloads.schema.yaml", "config/workloads.yaml")
    if cores == 0:
        raise UserError("--cores 0: nothing can run on no cores; use `--cores all`, or a number from 1 up")
    config |= {name: _checked_path(config, name) for name in ("model", "text")}
    threads = (cores or 1) if config["threads"] == "all" else config["threads"]
    machines = machines_of(config["hardware"], threads)
    wanted = config["perplexity"]["tokens"]
    tokens = {key: AUTO_TOKENS[one.device] if wanted == "auto" else wanted for key, one in machines.items()}
    _check_windows(config["perplexity"], min(tokens.values()), config["text"])
    names = _chosen_pairs(config["pairs"], workloads, root)
    cases = {key: _cases(config["tiers"], one.device, names, workloads) for key, one in machines.items()}
    serving = {key: _serving(config["serving"], key, one) for key, one in machines.items()}
    return Settings(machines=machines, cases=cases, tokens=tokens, serving=serving, values=config)


def _serving(given: dict[str, Any], key: str, machine: Machine) -> dict[str, Any]:
    """The load test's settings on one machine; what is `auto` follows its device."""
    gpus = machine.gpu_request[1]
    if machine.device == "cuda" and given["mode"] != "none" and given["tensor_parallel"] > gpus:
        raise UserError(
            f"serving.tensor_parallel: {given['tensor_parallel']} ranks want a GPU each, hardware {key} is {gpus}; "
            f"choose {gpus} at most, or a key of more GPUs"
        )
    autos = {name: value for name, value in AUTO_SERVING[machine.device].items() if given[name] == "auto"}
    return given | autos


def _cases(tiers: Any, device: str, names: list[str], workloads: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The cases of every pair on one device; `tiers: auto` follows the device."""
    chosen = AUTO_TIERS[device] if tiers == "auto" else tuple(tiers)
    cases = {
        name: [{"tier": tier, **case} for tier in chosen for case in workloads[name].get(tier, [])] for name in names
    }
    for name, entries in cases.items():
        seen = [case["case"] for case in entries]
        if len(set(seen)) != len(seen):
            raise UserError(f"config/workloads.yaml: pair '{name}' has two cases of one name; rename one")
    return cases
