"""The contract of a pair: what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from serveproof import pairs
from serveproof.errors import UserError

BASELINE = """
def make_inputs(axes, device, seed): return {}
def reference(inputs): ...
def work(axes): return {}
def build(inputs): return lambda: None
"""
OPTIMIZED = '''"""What it is.
In two lines.

And more."""
READS = ("x",)
def requires(device): return None
def build(inputs): return lambda: None
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/baseline_toy.py").write_text(BASELINE)
    (tmp_path / "kernels/optimized_toy.py").write_text(OPTIMIZED)
    return tmp_path


def test_a_pair_loads_and_says_what_it_is(root: Path) -> None:
    pair = pairs.load("toy", root)
    assert pairs.summary("toy", root) == "What it is. In two lines."
    assert pairs.restrict(pair.optimized, {"x": 1, "y": 2}) == {"x": 1}
    assert pairs.restrict(pair.baseline, {"x": 1, "y": 2}) == {"x": 1, "y": 2}


def test_the_hash_follows_either_file(root: Path) -> None:
    first = pairs.load("toy", root).code_sha
    (root / "kernels/baseline_toy.py").write_text(BASELINE + "\n")
    assert pairs.load("toy", root).code_sha != first


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "baseline_toy.py",
            BASELINE.replace("work(axes)", "work(shape)"),
            r"baseline_toy.py: needs a function work\(axes\)",
        ),
        ("optimized_toy.py", "def build(inputs): ...", r"optimized_toy.py: needs a function requires\(device\)"),
    ],
)
def test_a_broken_contract_is_one_line(root: Path, file: str, text: str, message: str) -> None:
    (root / "kernels" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        pairs.load("toy", root)


def test_half_a_pair_and_no_pair(root: Path) -> None:
    with pytest.raises(UserError, match="pair 'tow' doesn't exist; kernels/ has: toy"):
        pairs.load("tow", root)
    (root / "kernels/optimized_toy.py").unlink()
    with pytest.raises(UserError, match=r"optimized_toy.py: missing"):
        pairs.names(root)


def test_the_hash_follows_what_a_kernel_imports(root: Path) -> None:
    (root / "serveproof/ops").mkdir(parents=True)
    (root / "serveproof/ops/shared.py").write_text("A = 1\n")
    (root / "kernels/optimized_toy.py").write_text(OPTIMIZED + "\ndef late():\n    from serveproof.ops import shared\n")
    assert pairs.code_files("toy", root) == [
        "kernels/baseline_toy.py", "kernels/optimized_toy.py", "serveproof/ops/shared.py",
    ]  # fmt: skip
    first = pairs.code_sha("toy", root)
    (root / "serveproof/ops/shared.py").write_text("A = 2\n")
    assert pairs.code_sha("toy", root) != first


def test_constants_are_read_without_importing(root: Path) -> None:
    assert not pairs.uses_every_gpu("toy", root)
    (root / "kernels/baseline_toy.py").write_text('RANKS = "all"\nPROBE = "alone"\nimport nothing_of_that_name\n')
    assert pairs.uses_every_gpu("toy", root)
    assert pairs.probes_alone("toy", root)
    (root / "kernels/baseline_toy.py").write_text('RANKS = "some"\n')
    with pytest.raises(UserError, match="baseline_toy.py: RANKS is 'some'; it can be 'one' or 'all'"):
        pairs.uses_every_gpu("toy", root)
