"""The float8 cast in torch and in Triton (interpreted), the layer in float8 against the reference, and what refuses."""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.candidates import made
from serveproof.bench.verification import CORRUPTIONS, check, corrupt
from serveproof.ops import quantize

PAIR = pairs.load("fp8_transformer_engine")
AXES = {"m": 24, "k": 64, "n": 48, "dtype": "bfloat16"}
TOLERANCE_EPS, OPTIMIZED_TOLERANCE_EPS = 2, 8
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with e4m3")


def inputs(seed: int = 0, **changes: Any) -> dict[str, Any]:
    return PAIR.baseline.make_inputs(AXES | changes, "cpu", seed)


def candidates(made_inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(closures by name, reasons of those that refuse), as the harness makes them."""
    return made(PAIR.optimized.build(pairs.restrict(PAIR.optimized, made_inputs)))


def worst_row(seed: int, magnitude: float, rows: int = 3, width: int = 33) -> torch.Tensor:
    """Normal values over five decades, so that a row has large and tiny ones."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10.0 ** (-5 * torch.rand(rows, width, generator=generator))
    return (torch.randn(rows, width, generator=generator) * spread * magnitude).bfloat16()


# 2^-4 of the value is half a step of 3 mantissa bits; 2^-10 of the scale half of e4m3's smallest step.
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 120), by=st.sampled_from(["row", "tensor"]))
def test_the_cast_is_within_half_a_step(seed: int, exponent: int, by: str) -> None:
    x_MK = worst_row(seed, 2.0**exponent)
    q_MK, scale = (quantize.quantize_rows_torch if by == "row" else quantize.quantize_tensor_torch)(x_MK)
    assert q_MK.dtype == torch.float8_e4m3fn
    assert scale.shape == ((3, 1) if by == "row" else ())
    error = (q_MK.double() * scale.double() - x_MK.double()).abs()
    assert (error <= (x_MK.double().abs() / 16 + scale.double() * 2.0**-10) * 1.0001).all()
    assert (error <= x_MK.double().abs().amax() * 2.0**-4 * 1.0001).all()


@pytest.mark.parametrize("cast", [quantize.quantize_rows, quantize.quantize_tensor])
def test_zeros_and_huge_and_broken_values(cast: Any) -> None:
    x_MK = torch.ones(4, 16).bfloat16()
    q_MK, scale = cast(torch.zeros(4, 16).bfloat16())
    assert (q_MK.float() * scale == 0).all()
    x_MK[1] = torch.finfo(torch.bfloat16).max
    q_MK, scale = cast(x_MK)
    assert torch.isfinite(q_MK.float() * scale).all()
    for broken in (float("nan"), float("inf"), -float("inf")):
        x_MK[2, 3] = broken
        q_MK, scale = cast(x_MK)
        assert not torch.isfinite(q_MK.float() * scale)[2, 3]


def test_a_row_of_zeros_leaves_its_neighbours_alone() -> None:
    x_MK = worst_row(0, 1.0)
    expected_MK, expected_M1 = quantize.quantize_rows(x_MK)
    x_MK[1] = 0
    q_MK, scale_M1 = quantize.quantize_rows(x_MK)
    assert (q_MK[1].float() == 0).all()
    assert torch.equal(q_MK[::2].float(), expected_MK[::2].float())
    assert torch.equal(scale_M1[::2], expected_M1[::2])


# Triton's interpreter loses the carry when rounding to e4m3 (126.9 becomes 64): here the kernels write float32.
@pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled here: on a GPU they are checked below")
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 64)])
def test_triton_kernels_equal_torch(shape: tuple[int, int]) -> None:
    pytest.importorskip("triton")
    from serveproof.ops import quantize_kernel

    x_MK = worst_row(1, 3.0, *shape)
    x_MK[0, 0] = 0 if shape == (1, 1) else x_MK[0, 0]
    out_MK, scale_M1 = torch.empty(shape), torch.empty(shape[0], 1)
    quantize_kernel.launch(x_MK, out_MK, scale_M1)
    expected_MK, expected_M1 = quantize.quantize_rows_torch(x_MK)
    assert torch.equal(scale_M1, expected_M1)
    assert torch.equal(out_MK.to(torch.float8_e4m3fn).float(), expected_MK.float())
    scale = torch.empty(())
    quantize_kernel.launch_tensor(x_MK, x_MK.float().abs().amax(), out_MK, scale)
    expected_MK, expected = quantize.quantize_tensor_torch(x_MK)
    assert torch.equal(scale, expected)
    assert torch.equal(out_MK.to(torch.float8_e4m3fn).float(), expected_MK.float())


@pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled here: on a GPU they are checked below")
def test_triton_tensor_kernel_spans_programs_and_keeps_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from serveproof.ops import quantize_kernel

    monkeypatch.setattr(quantize_kernel, "TENSOR_WIDTH", 32)
    x_MK = worst_row(2, 1.0)
    x_MK[2, 5] = float("nan")
    out_MK, scale, amax = torch.zeros(3, 33), torch.empty(()), torch.tensor(4.0)
    quantize_kernel.launch_tensor(x_MK, amax, out_MK, scale)
    expected_MK = (x_MK.float() / (4.0 / 448)).clamp(-448, 448)
    assert torch.equal(out_MK.isnan(), x_MK.isnan())
    torch.testing.assert_close(out_MK, expected_MK, equal_nan=True)


@needs_gpu
@pytest.mark.skipif(INTERPRETED, reason="set TRITON_INTERPRET=0 to compile the kernels")
@pytest.mark.parametrize("shape", [(1, 16), (7, 100), (64, 4096), (3, 28672)])
def test_compiled_kernels_equal_torch_without_waiting_for_the_gpu(shape: tuple[int, int]) -> None:
    x_MK = worst_row(3, 2.0, *shape).cuda()
    for cast, plain in (
        (quantize.quantize_rows, quantize.quantize_rows_torch),
        (quantize.quantize_tensor, quantize.quantize_tensor_torch),
    ):
        cast(x_MK)
        torch.cuda.set_sync_debug_mode("error")
        try:
            q_MK, scale = cast(x_MK)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected_MK, expected = plain(x_MK)
        torch.testing.assert_close(scale, expected)
        # The compiled division is not correctly rounded: a value on a tie may go to the other side.
        differs = q_MK.float() != expected_MK.float()
        assert differs.float().mean() < 1e-3
        assert ((q_MK.float() - expected_MK.float()).abs() <= expected_MK.float().abs() / 8 + 2.0**-9).all()
        broken_MK = x_MK.clone()
        broken_MK[0, 3] = float("nan")
        q_MK, scale = cast(broken_MK)
        assert (q_MK.float() * scale)[0, 3].isnan()


@pytest.mark.parametrize("changes", [{}, {"m": 1}, {"m": 17}, {"activations": "float8"}, {"k": 512, "m": 3}])
def test_both_sides_meet_the_reference_and_refuse_what_is_wrong(changes: dict[str, Any]) -> None:
    made_inputs, others = inputs(**changes), inputs(seed=1, **changes)
    reference = PAIR.baseline.reference(made_inputs)
    assert reference.dtype == torch.float64
    runs, refusals = candidates(made_inputs)
    other_runs, _ = candidates(others)
    names = {"scaled_mm row-wise", "scaled_mm tensor-wise"}
    assert set(runs) | set(refusals) == names
    assert set(refusals) == ({"scaled_mm tensor-wise"} if "activations" in changes else set())
    sides = {"baseline": (PAIR.baseline.build(made_inputs), PAIR.baseline.build(others), TOLERANCE_EPS)}
    sides |= {name: (run, other_runs[name], OPTIMIZED_TOLERANCE_EPS) for name, run in runs.items()}
    for name, (run, other, tolerance_eps) in sides.items():
        output = run()
        result = check(output, reference, tolerance_eps)
        assert result.status == "passed", f"{name}: {result.reason}"
        for kind in CORRUPTIONS:
            assert check(corrupt(kind, output, other()), reference, tolerance_eps).status == "failed", (name, kind)


def test_float8_costs_more_error_than_bfloat16_and_the_bounds_tell_them_apart() -> None:
    made_inputs = inputs(m=64, k=512, n=256)
    reference = PAIR.baseline.reference(made_inputs)
    runs, _ = candidates(made_inputs)
    for run in runs.values():
        result = check(run(), reference, TOLERANCE_EPS)
        assert result.status == "failed"
        assert 0.03 < result.relative_error < 0.045  # two operands of 3 mantissa bits
    assert check(PAIR.baseline.build(made_inputs)(), reference, TOLERANCE_EPS).relative_error < 0.003


def test_a_refill_changes_the_output_and_not_the_weights() -> None:
    made_inputs, others = inputs(), inputs(seed=1)
    assert torch.equal(made_inputs["w_NK"], others["w_NK"])
    runs, _ = candidates(made_inputs)
    for run in runs.values():
        before = run()
        made_inputs["x_MK"].copy_(others["x_MK"])
        assert check(run(), PAIR.baseline.reference(others), OPTIMIZED_TOLERANCE_EPS).status == "passed"
        assert check(before, PAIR.baseline.reference(others), OPTIMIZED_TOLERANCE_EPS).status == "failed"
        made_inputs["x_MK"].copy_(inputs()["x_MK"])


def test_activations_in_float8_are_those_of_the_same_seed() -> None:
    made_inputs = inputs(activations="float8")
    expected_MK, expected_M1 = quantize.quantize_rows_torch(made_inputs["x_MK"])
    assert torch.equal(made_inputs["x8_MK"].float(), expected_MK.float())
    assert torch.equal(made_inputs["x8_scale_M1"], expected_M1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "the layer is in torch.float32"),
        ({"dtype": "float16"}, "the layer is in torch.float16"),
        ({"k": 40}, "K and N in whole 16s; w is (48, 40)"),
        ({"n": 20}, "K and N in whole 16s; w is (20, 64)"),
    ],
)
def test_what_the_products_do_not_take_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    runs, refusals = candidates(inputs(**changes))
    assert not runs
    assert len(refusals) == 2
    assert all(reason in text for text in refusals.values())


def test_a_chip_without_e4m3_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "compute capability 8.0 has no e4m3" in PAIR.optimized.requires("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert PAIR.optimized.requires("cuda") is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: pytest.fail("no CUDA call on a CPU"))
    assert PAIR.optimized.requires("cpu") is None


def test_work_counts_float8_weights_and_x_as_it_comes() -> None:
    plain = PAIR.baseline.work(AXES)
    assert plain["flops"] == 2 * 24 * 64 * 48
    assert plain["bytes"] == 48 * 64 + 2 * 24 * 64 + 2 * 24 * 48
    assert PAIR.baseline.work(AXES | {"activations": "float8"})["bytes"] == plain["bytes"] - 24 * 64


def test_weight_bytes_of_both_sides() -> None:
    made_inputs = inputs()
    assert PAIR.baseline.metrics(made_inputs)["weight_bytes"][0] == 2 * 48 * 64
    w8_NK, scale_N1 = quantize.quantize_rows_torch(made_inputs["w_NK"])
    assert PAIR.optimized.metrics(made_inputs)["weight_bytes"][0] == w8_NK.nbytes + scale_N1.nbytes


class FakeLinear(torch.nn.Module):
    """What the calibration rests on, as Transformer Engine 2.20's sources have it: the scale of a delayed recipe is 1
    until autocast is left with gradients on; cast weights are kept from is_first_microbatch=True to the next."""

    def __init__(self, in_features: int, out_features: int, **ignored: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.scale, self.amax, self.cast_scale = 1.0, 0.0, None

    def forward(self, x_MK: torch.Tensor, is_first_microbatch: bool) -> torch.Tensor:
        self.amax = float(self.weight.abs().max())
        if is_first_microbatch:
            self.cast_scale = self.scale
        FakeLinear.last = self
        cast_NK = (self.weight.detach().float() * self.cast_scale).to(torch.float8_e4m3fn).float() / self.cast_scale
        return (x_MK.float() @ cast_NK.T).bfloat16()


@contextlib.contextmanager
def fake_autocast(enabled: bool, recipe: str) -> Any:
    yield
    if recipe == "DelayedScaling" and torch.is_grad_enabled():
        FakeLinear.last.scale = 448 / FakeLinear.last.amax


def fake_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("transformer_engine", "transformer_engine.common")}
    names = PAIR.optimized.RECIPES.values()
    recipes = SimpleNamespace(**{name: (lambda name=name: name) for name in names})
    modules["transformer_engine.common"].recipe = recipes
    modules["transformer_engine.pytorch"] = SimpleNamespace(Linear=FakeLinear, autocast=fake_autocast)
    modules["transformer_engine"].pytorch = modules["transformer_engine.pytorch"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_delayed_scales_are_calibrated_before_the_weights_are_cast_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_transformer_engine(monkeypatch)
    made_inputs = inputs(k=4096, m=4, n=16)
    run = PAIR.optimized.build_te(made_inputs, "delayed")
    assert FakeLinear.last.cast_scale == 448 / float(made_inputs["w_NK"].abs().max())
    calibrated = check(run(), PAIR.baseline.reference(made_inputs), OPTIMIZED_TOLERANCE_EPS)
    monkeypatch.setattr(PAIR.optimized, "CALIBRATION_CALLS", 0)
    uncalibrated_run = PAIR.optimized.build_te(made_inputs, "delayed")
    uncalibrated = check(uncalibrated_run(), PAIR.baseline.reference(made_inputs), OPTIMIZED_TOLERANCE_EPS)
    assert calibrated.relative_error < 0.75 * uncalibrated.relative_error
    assert "calibrated" in run.plan


def test_without_transformer_engine_its_recipes_refuse_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    with pytest.raises(NotImplementedError, match=r"envs/gpu\.txt has it"):
        PAIR.optimized.build_te(inputs(), "current")
    with pytest.raises(NotImplementedError, match="it takes none in float8"):
        PAIR.optimized.build_te(inputs(activations="float8"), "current")


@needs_gpu
@pytest.mark.skipif(INTERPRETED, reason="set TRITON_INTERPRET=0 to compile the kernels")
@pytest.mark.parametrize("m", [1, 16, 24, 64])
def test_every_candidate_on_a_gpu_is_right_or_says_why_not(m: int) -> None:
    made_inputs = PAIR.baseline.make_inputs(AXES | {"m": m, "k": 512, "n": 256}, "cuda", 0)
    runs, refusals = candidates(made_inputs)
    assert {"scaled_mm row-wise", "scaled_mm row-wise, graph"} <= set(runs), refusals
    made_inputs["x_MK"].normal_()
    reference = PAIR.baseline.reference(made_inputs)
    for name, run in runs.items():
        result = check(run(), reference, OPTIMIZED_TOLERANCE_EPS)
        assert result.status == "passed", f"{name}: {result.reason}"
    assert all(refusals.values())
