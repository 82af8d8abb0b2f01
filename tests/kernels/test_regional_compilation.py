"""Both stacks against the float64 reference, compiled and not; the second layer finds the first one's code."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from serveproof import pairs
from serveproof.bench.verification import CORRUPTIONS, check, corrupt
from serveproof.ops import blocks, compile_start

PAIR = pairs.load("regional_compilation")
MLP = {
    "layers": 3,
    "batch": 2,
    "seq": 5,
    "hidden": 16,
    "ffn": 24,
    "norm": "layernorm",
    "activation": "gelu",
    "dtype": "float32",
}
LLAMA = MLP | {"norm": "rmsnorm", "activation": "silu", "q_heads": 4, "kv_heads": 2, "head_dim": 8}
TOLERANCE_EPS = 32


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's tracing and guards without a C++ compiler behind them."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, **options | {"backend": "eager"}))
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("axes", [MLP, LLAMA, LLAMA | {"seq": 1}, LLAMA | {"kv_heads": 4}, MLP | {"layers": 1}])
def test_stack_equals_the_reference(axes: dict[str, object]) -> None:
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    reference = PAIR.baseline.reference(made)
    assert reference.dtype == torch.float64
    result = check(blocks.make_stack(made)(made["x_BSE"]), reference, TOLERANCE_EPS)
    assert result.status == "passed", result.reason


@pytest.mark.usefixtures("eager_backend")
@pytest.mark.parametrize("axes", [MLP, LLAMA])
@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_one_graph_whole_or_regional_and_right_on_refilled_inputs(axes: dict[str, object], side: str) -> None:
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    run = PAIR.side(side).build(made)
    stale = run()
    made["x_BSE"].copy_(PAIR.baseline.make_inputs(axes, "cpu", 1)["x_BSE"])
    output, reference = run(), PAIR.baseline.reference(made)
    assert check(output, reference, TOLERANCE_EPS).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, output, stale), reference, TOLERANCE_EPS).status == "failed", kind
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("eager_backend")
def test_more_layers_than_the_recompile_limit_still_share_one_code() -> None:
    made = PAIR.baseline.make_inputs(MLP | {"layers": 24}, "cpu", 0)
    PAIR.optimized.build(made)()
    assert counters["stats"]["unique_graphs"] == 1


def test_weights_are_views_of_the_inputs_and_do_not_change_with_the_seed() -> None:
    one, other = (PAIR.baseline.make_inputs(LLAMA, "cpu", seed) for seed in (0, 1))
    changed = {name for name, value in one.items() if isinstance(value, torch.Tensor) and not value.equal(other[name])}
    assert changed == {"x_BSE"}
    stack = blocks.make_stack(one)
    one["w_down"].zero_()
    assert all(not block.down.any() for block in stack.blocks)


@pytest.mark.usefixtures("eager_backend")
def test_starts_are_measured_and_count_graphs() -> None:
    made = PAIR.baseline.make_inputs(MLP, "cpu", 0)
    figures = compile_start.figures(
        made, lambda: PAIR.optimized.build(made), lambda: PAIR.optimized.compile_blocks(made)
    )
    assert figures["cold_start_s"][0] > 0
    assert figures["warm_start_s"][0] > 0
    assert figures["eager_ms"][0] > 0
    assert figures["called_ms"][0] > 0
    assert figures["compiled_graphs"][0] == 1


def test_work_of_the_public_shape() -> None:
    axes = MLP | {"layers": 16, "batch": 1, "seq": 1024, "hidden": 3072, "ffn": 12288, "dtype": "bfloat16"}
    weights = 16 * 2 * 3072 * 12288
    assert PAIR.baseline.work(axes)["flops"] == 2 * 1024 * weights
    assert PAIR.baseline.work(axes)["bytes"] == 2 * (weights + 2 * 1024 * 3072)


def test_norm_and_activation_must_be_the_blocks() -> None:
    with pytest.raises(ValueError, match="this block has"):
        PAIR.baseline.make_inputs(MLP | {"activation": "silu"}, "cpu", 0)
