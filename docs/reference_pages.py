"""The reference, made from what the code itself reads: schemas, records, argument parsers, metric tables.

Nothing of it is written by hand, so nothing of it can be out of date. docs/site_hooks.py puts the pages into the site.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import yaml

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- made by docs/reference_pages.py -->\n\n"


def cell(text: object) -> str:
    """Text for a cell of a table: one line, its bars escaped."""
    return " ".join(str(text).split()).replace("|", "\\|")


def code(text: object) -> str:
    """The same as code; an empty one stays empty."""
    return f"`{cell(text)}`" if str(text).strip() else ""


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"


def pages(root: Path) -> dict[str, str]:
    """path in the site -> Markdown."""
    made = {"config": config(root), "cli": cli(root), "records": records(root), "metrics": metrics()}
    return {f"reference/{name}.md": MADE + text for name, text in made.items()}


# --- config ---------------------------------------------------------------------------------------------------------

LIMITS = (
    "const", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "minItems",
    "minProperties", "uniqueItems",
)  # fmt: skip


def resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A schema with its $ref followed; only references within the file are known."""
    if "$ref" not in schema:
        return schema
    found: Any = whole
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def allowed(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """What values a schema takes, in words."""
    schema = resolved(schema, whole)
    if "oneOf" in schema or "anyOf" in schema:
        return " or ".join(allowed(one, whole) for one in schema.get("oneOf") or schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = schema.get("type", "")
    text = " or ".join(kind) if isinstance(kind, list) else kind
    if "items" in schema:
        text += f" of {allowed(schema['items'], whole)}"
    limits = [f"{name} {schema[name]}" for name in LIMITS if name in schema]
    return text + (f" ({', '.join(limits)})" if limits else "")


def keys(schema: dict[str, Any], whole: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a schema with its place, as a.b.c; NAME stands for a key that the user names, [] for an item."""
    schema = resolved(schema, whole)
    inner = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        inner["NAME"] = schema["additionalProperties"]
    for name, one in inner.items():
        full = f"{place}.{name}" if place else name
        yield full, resolved(one, whole)
        yield from keys(one, whole, full)
    if isinstance(schema.get("items"), dict):
        item = resolved(schema["items"], whole)
        if "description" in item:
            yield f"{place}[]", item
        yield from keys(schema["items"], whole, f"{place}[]")


def default(values: Any, place: str) -> str:
    """The value that config/config.yaml has at a place; nothing for a mapping, or where it has none."""
    for part in place.split("."):
        if not isinstance(values, dict) or part not in values:
            return ""
        values = values[part]
    return "" if isinstance(values, dict) else str(values)


def config(root: Path) -> str:
    """Every key of the schemas of config/, with what config/config.yaml has."""
    text = "# Configuration\n\nAn unknown key is an error. `NAME` stands for a name of your own, `[]` for an item.\n\n"
    values = yaml.safe_load((root / "config/config.yaml").read_text(encoding="utf-8"))
    for path in sorted((root / "config").glob("*.schema.yaml")):
        schema = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [
            (code(place), allowed(one, schema), code(default(values, place)), cell(one.get("description", "")))
            for place, one in keys(schema, schema)
        ]
        escaped = [(place, cell(kind), set_to, said) for place, kind, set_to, said in rows]
        text += f"## {schema['title']}\n\n" + table(("key", "takes", "as delivered", "what it is"), escaped)
    return text


# --- command line ---------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised in the place of parsing."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(main: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a program makes, taken from it when it wants to parse."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Parsed(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop),
    ):
        try:
            main()
        except Parsed as found:
            return found.parser
    raise LookupError(f"{main.__module__}.main parses no arguments")


def loaded(path: Path) -> Any:
    """A program as a module, by its path."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    assert spec and spec.loader  # noqa: S101, PT018 - for the type checker
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def programs(root: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """command -> its main()."""
    yield "python compare.py", loaded(root / "compare.py").main
    for path in sorted((root / "scripts").glob("*.py")):
        yield f"python scripts/{path.name}", loaded(path).main
    for name in ("serveproof.server.__main__", "serveproof.bench.profiling_kernel"):
        module = importlib.import_module(name)
        yield COMMANDS.get(name, f"python -m {name.removesuffix('.__main__')}"), module.main


COMMANDS = {"serveproof.bench.profiling_kernel": "python kernels/X.py"}


def options(parser: argparse.ArgumentParser) -> list[tuple[str, ...]]:
    """A row an option."""
    rows = []
    for one in parser._actions:
        if isinstance(one, argparse._HelpAction):
            continue
        names = ", ".join(one.option_strings) or str(one.metavar or one.dest)
        takes = ", ".join(map(str, one.choices)) if one.choices else getattr(one.type, "__name__", "")
        given = "" if one.default in (None, False, argparse.SUPPRESS, [], "") else str(one.default)
        given = given.replace(f"{ROOT}/", "")
        said = (one.help or "").replace("%(default)s", given).replace("%%", "%")
        rows.append((code(names), cell(takes), "required" if one.required else code(given), cell(said)))
    return rows


def cli(root: Path) -> str:
    """Every program: what it says of itself, and its options."""
    text = (
        "# Command line\n\nThe programs of `scripts/`, `compare.py` and the server; `make help` lists the targets.\n\n"
    )
    for command, main in programs(root):
        parser = parser_of(main)
        text += f"## {command}\n\n{(parser.description or '').strip()}\n\n"
        text += table(("option", "takes", "default", "what it is"), options(parser))
    for command, one in subcommands("python -m cli.aisp", typer_command(root)):
        text += f"## {command}\n\n{inspect.cleandoc(one.help or '')}\n\n"
        text += table(("option", "default", "what it is"), typer_options(one))
    return text + made_targets(root)


def typer_command(root: Path) -> Any:
    """The command line of cli/aisp.py; None in a checkout without it."""
    if not (root / "cli/aisp.py").is_file():
        return None
    import typer

    return typer.main.get_command(importlib.import_module("cli.aisp").app)


def subcommands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below one, and itself where it is one to run."""
    inner = getattr(command, "commands", {})
    for word, one in inner.items():
        yield from subcommands(f"{name} {word}", one)
    if command is not None and not inner:
        yield name, command


def typer_options(command: Any) -> list[tuple[str, ...]]:
    """A row an option or argument of a command."""
    rows = []
    for one in command.params:
        given = "required" if one.required else code("" if one.default in (None, False, ()) else one.default)
        rows.append((code(", ".join(one.opts)), given, cell(one.help or "")))
    return rows


def made_targets(root: Path) -> str:
    """The targets of the Makefile, with what each says of itself."""
    found = re.findall(r"^([a-z-]+):.*?## *(.+)$", (root / "Makefile").read_text(encoding="utf-8"), re.M)
    return "## make\n\n" + table(("target", "what it does"), [(code(name), cell(said)) for name, said in found])


# --- records --------------------------------------------------------------------------------------------------------


def record_modules(root: Path) -> list[str]:
    """Modules that hold records: those named *records.py or *results.py."""
    found = [path for path in (root / "serveproof").rglob("*.py") if re.search(r"(records|results)$", path.stem)]
    return sorted(".".join(path.relative_to(root).with_suffix("").parts) for path in found)


def fields(kind: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """A row a field; types as the source has them."""
    rows = []
    for one in msgspec.structs.fields(kind):
        owner = next(base for base in kind.__mro__ if one.name in vars(base).get("__annotations__", {}))
        has = "required" if one.required else code("{}" if one.default is msgspec.NODEFAULT else repr(one.default))
        if one.default is msgspec.NODEFAULT and one.default_factory is not msgspec.NODEFAULT:
            has = code(repr(one.default_factory()))
        rows.append((code(one.encode_name), code(vars(owner)["__annotations__"][one.name]), has))
    return rows


def records(root: Path) -> str:
    """Every record, module by module, and the columns of the tables beside them."""
    text = "# Records\n\nJSON of results/{hardware}. Reading one checks every type; an unknown field is an error.\n\n"
    for name in record_modules(root):
        module = importlib.import_module(name)
        text += f"## {name}\n\n{inspect.getdoc(module)}\n\n"
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == name:
                rows = fields(kind)
                if rows:
                    text += f"### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n" + table(
                        ("field", "type", "default"), rows
                    )
    return text + columns()


def columns() -> str:
    """The Parquet files' columns."""
    module = importlib.import_module("serveproof.tables")
    text = f"## serveproof.tables\n\n{inspect.getdoc(module)}\n\n"
    for name, schema in vars(module).items():
        if name.endswith("_SCHEMA"):
            text += f"### {name}\n\n" + table(
                ("column", "type"), [(code(one), code(kind)) for one, kind in schema.items()]
            )
    return text


# --- metrics --------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric that the server and the exporter serve."""
    from serveproof.telemetry import engine_metrics, gpu_metrics, gpu_profiling, host_metrics

    server = [
        (code(name), one.kind.__name__.lower(), code(one.vllm), cell(", ".join(one.labels)), cell(one.help))
        for name, one in engine_metrics.METRICS.items()
    ]
    gpu = [(code(one.name), one.kind, cell(one.help)) for one in gpu_metrics.METRICS]
    profiling = [(code(name), "gauge", cell(said)) for name, said in gpu_profiling.PROFILING.items()]
    host = [(code(one.name), one.kind, cell(one.help)) for one in host_metrics.collect()]
    host += [(code(one.name), one.kind, cell(one.help)) for one in host_metrics.gpu_presence(0, "none")]
    heads = ("metric", "kind", "what it is")
    return (
        "# Metrics\n\n## The server\n\n`/metrics` of `python -m serveproof.server`. Each also has the label"
        " `model_name`; counters end in `_total` there.\n\n"
        + table(("metric", "kind", "vLLM's name", "labels", "what it is"), server)
        + "## GPUs\n\n`scripts/dcgm_prometheus_exporter.py`, from NVML.\n\n"
        + table(heads, gpu)
        + "## Profiling ratios of GPUs\n\nThe same exporter, from GPM or `dcgmi dmon`.\n\n"
        + table(heads, profiling)
        + "## The host\n\nThe same exporter. Pressure is there where the kernel tells it.\n\n"
        + table(heads, host)
    )
