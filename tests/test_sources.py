"""The import closure that every rule takes as input, against what Python really imports."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serveproof.sources import closure, sha_of

ROOT = Path(__file__).resolve().parent.parent
RULES = {
    found["name"]: found
    for file in sorted((ROOT / "rules").glob("*.smk"))
    for found in re.finditer(r"^rule (?P<name>\w+):\n(?P<body>(?:[ \t]+.*\n|\n)+)", file.read_text(), re.M)
}
# Runs a file as a module of another name than __main__, so that it imports all and does nothing.
REALLY_IMPORTED = """
import importlib.util, json, sys
from pathlib import Path
root, start = Path(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location("started", root / start)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
for module in sys.argv[3:]:
    importlib.import_module(module)
files = [Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
print(json.dumps([str(file.relative_to(root)) for file in files if file.is_relative_to(root / "serveproof")]))
"""


def really_imported(start: str, *late: str) -> set[str]:
    """Files of serveproof that importing `start` loads in a fresh process, and then the modules it imports late."""
    command = [sys.executable, "-c", REALLY_IMPORTED, str(ROOT), start, *late]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("start", "late"),
    [
        ("serveproof/results.py", ()),
        ("scripts/judge.py", ()),
        ("scripts/report.py", ()),
        ("scripts/hardware.py", ("serveproof.hardware.ceilings",)),
        ("scripts/verify_pair.py", ("serveproof.bench.inputs", "serveproof.bench.verification")),
        (
            "scripts/measure_pair.py",
            ("serveproof.bench.inputs", "serveproof.bench.memory", "serveproof.bench.timing"),
        ),
        ("scripts/profile_pair.py", ("serveproof.bench.profiling_worker", "serveproof.bench.profiling_ncu")),
        ("scripts/inference_profiling.py", ("serveproof.engine.loader",)),
        ("scripts/perplexity_eval.py", ()),
        ("scripts/prepare_model.py", ()),
        ("scripts/prepare_text.py", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_closure_has_every_file_that_is_really_imported(start: str, late: tuple[str, ...]) -> None:
    imported = really_imported(start, *late)
    assert imported
    assert imported <= set(closure(start, ROOT))


def test_every_rule_has_its_script_s_closure() -> None:
    assert {"hardware", "verify_pair", "measure_pair", "perplexity_eval", "judge", "report"} <= RULES.keys()
    for name, rule in RULES.items():
        if name == "validate_ranks":  # one rule for several scripts
            continue
        # start_ranks.py goes before the script that it starts
        called = re.findall(r'(?:python3|params\.python:q\}|\{params\.ranks\}"?\s*"?) (scripts/\w+\.py)', rule["body"])
        scripts = set(called) - {"scripts/start_ranks.py"}
        assert scripts == set(re.findall(r'code_of\("(scripts/\w+\.py)"', rule["body"])), name
        assert len(scripts) == 1, name
        assert scripts <= set(closure(scripts.pop(), ROOT)), name


def test_the_rule_of_several_ranks_has_its_scripts_and_what_starts_them() -> None:
    body = RULES["validate_ranks"]["body"]
    assert 'f"scripts/{wildcards.validation}.py", "scripts/start_ranks.py"' in body
    assert "scripts/start_ranks.py --nodes {params.nodes} --ranks {params.ranks}" in body
    assert '" scripts/{wildcards.validation}.py"' in body
    named = re.findall(r'^    "(\w+)": \(', (ROOT / "rules/common.smk").read_text(), re.M)
    assert len(named) == 5
    for name in named:
        files = closure(f"scripts/{name}.py", ROOT)
        assert {f"scripts/{name}.py", "serveproof/distributed/group.py"} <= set(files)


@pytest.mark.parametrize("script", ["scripts/judge.py", "scripts/report.py"])
def test_judging_and_reporting_do_not_depend_on_the_timing(script: str) -> None:
    assert "serveproof/bench/timing.py" not in closure(script, ROOT)
    assert "serveproof/bench/timing.py" in closure("scripts/measure_pair.py", ROOT)


def test_the_package_has_no_relative_imports() -> None:
    for file in (ROOT / "serveproof").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), file


def test_closure_follows_every_way_to_import(tmp_path: Path) -> None:
    package = tmp_path / "serveproof"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from serveproof import sibling\n")
    (package / "sibling.py").write_text("import serveproof.inner  # in a circle\n")
    (package / "inner" / "late.py").write_text("import json\n")
    (package / "unused.py").write_text("")
    (tmp_path / "start.py").write_text("def work():\n    from serveproof.inner.late import something\n")
    assert closure("start.py", tmp_path) == [
        "serveproof/__init__.py",
        "serveproof/inner/__init__.py",
        "serveproof/inner/late.py",
        "serveproof/sibling.py",
        "start.py",
    ]


def test_sha_tells_where_one_file_ends(tmp_path: Path) -> None:
    contents = {"a": "xy", "b": "z", "c": "x", "d": "yz"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert sha_of([tmp_path / "a", tmp_path / "b"]) != sha_of([tmp_path / "c", tmp_path / "d"])
