"""Loads kernels/ by path and checks the contract of a pair.

kernels/ is a folder of loose files, never a package: an importable folder of that name breaks some releases of
transformers, and an __init__.py there would shadow the PyPI package `kernels`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from serveproof.errors import UserError
from serveproof.sources import closure, sha_of

ROOT = Path(__file__).resolve().parent.parent
Inputs = dict[str, Any]
Run = Callable[[], Any]

BASELINE_FUNCTIONS = {
    "make_inputs": ("axes", "device", "seed"),
    "reference": ("inputs",),
    "work": ("axes",),
    "build": ("inputs",),
}
OPTIMIZED_FUNCTIONS = {"requires": ("device",), "build": ("inputs",)}


@dataclass(frozen=True)
class Pair:
    """A baseline and an optimized module that keep the contract (docs/architecture.md, 'The contract of a pair')."""

    name: str
    baseline: ModuleType
    optimized: ModuleType
    code_sha: str

    def side(self, name: str) -> ModuleType:
        return self.baseline if name == "baseline" else self.optimized


def files(name: str, root: Path = ROOT) -> tuple[Path, Path]:
    """The two files of a pair, baseline first."""
    return root / "kernels" / f"baseline_{name}.py", root / "kernels" / f"optimized_{name}.py"


def names(root: Path = ROOT) -> list[str]:
    """Every pair in kernels/: a baseline file with its optimized file beside it. A half pair is a UserError."""
    found = {
        side: {path.stem.removeprefix(f"{side}_") for path in (root / "kernels").glob(f"{side}_*.py")}
        for side in ("baseline", "optimized")
    }
    for name in sorted(found["baseline"] ^ found["optimized"]):
        missing = "optimized" if name in found["baseline"] else "baseline"
        raise UserError(f"kernels/{missing}_{name}.py: missing; a pair is a baseline_ and an optimized_ file")
    return sorted(found["baseline"])


def _load(path: Path, functions: Mapping[str, tuple[str, ...]]) -> ModuleType:
    module_name = f"serveproof_pair_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"kernels/{path.name}: no such file; a pair is a baseline_ and an optimized_ file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # torch.compile and Triton look a function's module up by name
    spec.loader.exec_module(module)
    for function, parameters in functions.items():
        found = getattr(module, function, None)
        if not callable(found) or tuple(inspect.signature(found).parameters) != parameters:
            raise UserError(
                f"kernels/{path.name}: needs a function {function}({', '.join(parameters)}); "
                f"see docs/architecture.md, 'The contract of a pair'"
            )
    return module


def load(name: str, root: Path = ROOT) -> Pair:
    """Import both files of a pair. UserError when the pair doesn't exist or breaks the contract."""
    if name not in names(root):
        raise UserError(f"pair '{name}' doesn't exist; kernels/ has: {', '.join(names(root)) or 'none'}")
    baseline, optimized = files(name, root)
    return Pair(
        name=name,
        baseline=_load(baseline, BASELINE_FUNCTIONS),
        optimized=_load(optimized, OPTIMIZED_FUNCTIONS),
        code_sha=code_sha(name, root),
    )


def code_files(name: str, root: Path = ROOT) -> list[str]:
    """Every file that a pair's figures depend on: its two files and what they import of serveproof.ops."""
    found: set[str] = set()
    for file in files(name, root):
        found.update(closure(file.relative_to(root), root))
    return sorted(found)


def code_sha(name: str, root: Path = ROOT) -> str:
    """The hash that expectations are tied to."""
    return sha_of(root / file for file in code_files(name, root))


def constant(path: Path, name: str, allowed: tuple[str, ...]) -> str:
    """A text constant of a kernel file by syntax, without importing torch; the first of `allowed` when it's not set."""
    for node in ast.parse(path.read_text(), filename=str(path)).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            value = ast.literal_eval(node.value)
            if value not in allowed:
                raise UserError(
                    f"kernels/{path.name}: {name} is {value!r}; it can be {' or '.join(map(repr, allowed))}"
                )
            return str(value)
    return allowed[0]


def uses_every_gpu(name: str, root: Path = ROOT) -> bool:
    """Whether a pair runs one process on every visible GPU (RANKS = "all" in its baseline)."""
    return constant(files(name, root)[0], "RANKS", ("one", "all")) == "all"


def probes_alone(name: str, root: Path = ROOT) -> bool:
    """Whether a pair's metrics time something, so that its sides are not probed at once (PROBE = "alone")."""
    return constant(files(name, root)[0], "PROBE", ("together", "alone")) == "alone"


def summary(name: str, root: Path = ROOT) -> str:
    """What the optimization is: the first paragraph of the optimized file's docstring."""
    path = files(name, root)[1]
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def restrict(module: ModuleType, inputs: Inputs) -> Inputs:
    """The inputs this side reads: those its READS names, or all. A side can't use, or be charged for, any other."""
    reads = getattr(module, "READS", None)
    return dict(inputs) if reads is None else {key: inputs[key] for key in reads}
