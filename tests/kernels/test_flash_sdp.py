"""Plain and flash attention against the float64 reference, with and without the QKV projection."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from serveproof import pairs
from serveproof.bench.candidates import made as make_candidates
from serveproof.bench.verification import CORRUPTIONS, check, corrupt

PAIR = pairs.load("flash_sdp")
AXES = {"batch": 2, "heads": 3, "seq": 65, "head_dim": 16, "causal": False, "dtype": "float32"}


@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"seq": 1}, {"hidden": 48}, {"hidden": 48, "causal": True}])
def test_both_sides_equal_the_reference(changes: dict[str, object]) -> None:
    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    reference = PAIR.baseline.reference(made)
    assert reference.dtype == torch.float64
    for side in (PAIR.baseline, PAIR.optimized):
        torch.testing.assert_close(side.build(made)().double(), reference, rtol=1e-4, atol=1e-5)


def test_work_counts_half_of_a_causal_product_and_the_projection() -> None:
    plain = PAIR.baseline.work(AXES)
    assert plain["flops"] == 4 * 2 * 3 * 65 * 65 * 16
    assert PAIR.baseline.work(AXES | {"causal": True})["flops"] == plain["flops"] / 2
    assert PAIR.baseline.work(AXES | {"hidden": 48})["flops"] == plain["flops"] + 2 * 2 * 65 * 48 * 3 * 48


def test_hidden_must_be_heads_times_head_dim() -> None:
    with pytest.raises(ValueError, match="heads \\* head_dim is 48"):
        PAIR.baseline.make_inputs(AXES | {"hidden": 64}, "cpu", 0)


@pytest.mark.parametrize("side", ["baseline", "optimized"])
@pytest.mark.parametrize("changes", [{"causal": True}, {"hidden": 48}])
def test_wrong_outputs_are_rejected(side: str, changes: dict[str, object]) -> None:
    made, other = (PAIR.baseline.make_inputs(AXES | changes, "cpu", seed) for seed in (0, 1))
    reference = PAIR.baseline.reference(made)
    out, stale = (PAIR.side(side).build(inputs)() for inputs in (made, other))
    assert check(out, reference, 32).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, out, stale), reference, 32).status == "failed", kind


def test_a_mask_off_by_one_is_rejected() -> None:
    made = PAIR.baseline.make_inputs(AXES | {"causal": True}, "cpu", 0)
    views = PAIR.baseline.project(made)
    mask_SS = PAIR.baseline.causal_mask(AXES["seq"], "cpu").roll(1, 1).triu(2)
    off_by_one = PAIR.baseline.softmax_attention(*views, mask_SS)
    assert check(off_by_one, PAIR.baseline.reference(made), 32).status == "failed"


def test_flashinfer_says_why_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="pip install flashinfer-python"):
        PAIR.optimized.build_fa3(made)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(NotImplementedError, match="1024 tokens up"):
        PAIR.optimized.build_fa3(made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"hidden": 192}])
def test_every_candidate_on_a_gpu(changes: dict[str, object]) -> None:
    axes = AXES | {"seq": 512, "head_dim": 64, "dtype": "bfloat16"} | changes
    made = PAIR.baseline.make_inputs(axes, "cuda", 0)
    reference = PAIR.baseline.reference(made)
    runs, refusals = make_candidates(PAIR.optimized.build(made))
    assert {"sdpa flash", "sdpa efficient"} <= set(runs), refusals
    for name, run in runs.items():
        result = check(run(), reference, 4)
        assert result.status == "passed", (name, result.reason)
