"""A new pair is two files and one entry; one that fails or can't run is a status with a reason that stops nothing."""

from __future__ import annotations

import shutil

import polars as pl
import pytest

from serveproof import results
from tests.workflow.conftest import Checkout, Done, modified

# pair -> the optimized side's two functions
PAIRS = {
    "wrong_zeros": """
def requires(device):
    return None

def build(inputs):
    out = torch.zeros_like(inputs["q_BSHD"].transpose(1, 2))
    return lambda: out
""",
    "wrong_build": """
def requires(device):
    return None

def build(inputs):
    raise RuntimeError("this build never works")
""",
    "wrong_machine": """
def requires(device):
    return "needs a machine that nobody has"

def build(inputs):
    raise AssertionError("never called")
""",
}
STATUSES = {
    "wrong_zeros": ("failed", "relative error"),
    "wrong_build": ("error", "this build never works"),
    "wrong_machine": ("skipped", "needs a machine that nobody has"),
}
ENTRY = """
{pair}:
  cpu:
    - case: s64
      tolerance_eps: 32
      axes: {{batch: 1, heads: 2, seq: 64, head_dim: 16, causal: true, dtype: float32}}
"""


@pytest.fixture(scope="module")
def added(smoke: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Done, dict[str, int]]:
    """The run with three more pairs, what it said, and when its results were written before."""
    checkout = smoke.copy(tmp_path_factory.mktemp("added") / "checkout")
    before = modified(checkout.results)
    kernels = checkout.folder / "kernels"
    for pair, functions in PAIRS.items():
        shutil.copy(kernels / "baseline_flash_sdp.py", kernels / f"baseline_{pair}.py")
        (kernels / f"optimized_{pair}.py").write_text(f'"""A pair for a test."""\n\nimport torch\n{functions}')
        checkout.append("config/workloads.yaml", ENTRY.format(pair=pair))
    return checkout, checkout.run(), before


def test_the_run_goes_on(added: tuple[Checkout, Done, dict[str, int]]) -> None:
    checkout, done, before = added
    assert done.returncode == 0, done.stdout
    after = modified(checkout.results)
    rewritten = {name for name in before if after[name] != before[name]}
    assert rewritten == {"cpu/judgement.json", "cpu/history.json"}
    page = (checkout.folder / "reports" / "index.html").read_text()
    assert all(pair in page for pair in PAIRS)


@pytest.mark.parametrize("pair", PAIRS)
def test_its_status_has_a_reason_and_no_times(added: tuple[Checkout, Done, dict[str, int]], pair: str) -> None:
    folder = added[0].results / "cpu" / "pairs" / pair
    status, reason = STATUSES[pair]
    (case,) = results.read(folder / "measure.json", results.MeasureRecord).cases
    assert case.status == status
    assert reason in case.reason
    assert (case.speedup, case.baseline, case.optimized, case.timing) == (None, None, None, None)
    assert pl.read_parquet(folder / "samples.parquet").is_empty()


def test_judge_says_so(added: tuple[Checkout, Done, dict[str, int]]) -> None:
    checkout, _, _ = added
    judgement = results.read(checkout.results / "cpu" / "judgement.json", results.Judgement)
    verdicts = {verdict.subject: verdict.verdict for verdict in judgement.verdicts}
    assert verdicts["wrong_zeros/s64"] == "failed"
    assert verdicts["wrong_build/s64"] == "failed"
    assert verdicts["wrong_machine/s64"] == "skipped"
    assert checkout.compare().returncode == 1
