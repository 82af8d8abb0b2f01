"""Quantization against a float64 reference written from the format's definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveproof.engine.loader import load_model
from serveproof.engine.quantization import (
    PRECISIONS,
    Nvfp4Linear,
    QuantizedLinear,
    get_precision,
    quantize_,
    quantize_weight,
)
from serveproof.errors import UserError

TENSOR, CHANNEL, INT8 = (PRECISIONS[name] for name in ("fp8_e4m3_tensor", "fp8_e4m3_channel", "int8_channel"))
# e4m3 has 4 exponent bits of bias 7 and 3 of mantissa; 1111.111 is NaN. The index of a value is its code.
E4M3 = np.array(
    [m * 2.0**-9 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
)
E4M3 = E4M3[:-1]


def round_to_e4m3(x: np.ndarray) -> np.ndarray:
    """Nearest e4m3 value in float64, ties to the even code, saturating at 448."""
    distance = np.abs(np.abs(x)[:, None] - E4M3[None])
    nearest = distance.min(axis=1, keepdims=True)
    tied = distance == nearest
    even = np.arange(len(E4M3)) % 2 == 0
    code = np.where((tied & even).any(axis=1), (tied & even).argmax(axis=1), tied.argmax(axis=1))
    return np.copysign(E4M3[code], x)


def with_scale_one(values: list[float]) -> torch.Tensor:
    """A row whose largest magnitude makes the scale exactly 1."""
    return torch.tensor([[448.0, *values]])


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=30))
def test_e4m3_rounds_to_nearest_even(values: list[float]) -> None:
    weight_NK = with_scale_one(values)
    got, scale = quantize_weight(weight_NK, TENSOR)
    assert got.dtype == torch.float8_e4m3fn
    assert scale.item() == 1.0
    assert np.array_equal(got.double().numpy()[0], round_to_e4m3(weight_NK.double().numpy()[0]))


def test_e4m3_ties_and_subnormals() -> None:
    midpoints = (E4M3[1:] + E4M3[:-1]) / 2
    values = [*midpoints, *-midpoints, *E4M3, 2.0**-10, 2.0**-11]
    got, _ = quantize_weight(with_scale_one(values), TENSOR)
    assert np.array_equal(got.double().numpy()[0], round_to_e4m3(np.array([448.0, *values])))


@given(st.floats(2.0**-100, 2.0**100, width=32), st.integers(0, 2**32 - 1))
def test_nothing_overflows_whatever_the_scale(magnitude: float, seed: int) -> None:
    weight_NK = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * magnitude
    for precision in (TENSOR, CHANNEL, INT8):
        values_NK, scale_N = quantize_weight(weight_NK, precision)
        error = values_NK.float() * scale_N[:, None] - weight_NK
        # Half a step: 2^-4 relative for a 3-bit mantissa (or half the smallest step), half a code for int8.
        bound = scale_N[:, None] / 2 if precision is INT8 else weight_NK.abs() / 16 + scale_N[:, None] * 2.0**-10
        assert torch.isfinite(values_NK.float()).all()
        assert (error.abs() <= bound * 1.0001).all()


def test_int8_is_symmetric_and_rounds_half_to_even() -> None:
    weight_NK = torch.tensor([[127.0, -127.0, 0.5, 1.5, -2.5, 0.4, 0.0]])
    values, scale = quantize_weight(weight_NK, INT8)
    assert values.tolist() == [[127, -127, 0, 2, -2, 0, 0]]
    assert scale.tolist() == [1.0]


def test_scales_per_tensor_and_per_channel() -> None:
    weight_NK = torch.tensor([[448.0, 1.0], [4.48, 0.01], [0.0, 0.0]])
    assert quantize_weight(weight_NK, TENSOR)[1].tolist() == [1.0]
    assert quantize_weight(weight_NK, CHANNEL)[1].tolist() == pytest.approx([1.0, 0.01, 1.0])


@pytest.mark.parametrize("precision", [TENSOR, CHANNEL, INT8], ids=lambda p: p.name)
def test_linear_holds_values_exactly_and_scales_the_output(precision: Any) -> None:
    torch.manual_seed(0)
    weight_NK, x_BLK = torch.randn(32, 64), torch.randn(2, 5, 64).bfloat16()
    linear = QuantizedLinear(weight_NK, precision)
    values_NK, scale_N = quantize_weight(weight_NK, precision)
    assert torch.equal(linear.values_NK.double(), values_NK.double())
    assert linear.scale_N.dtype == torch.float32
    expected = (x_BLK.double() @ values_NK.double().T) * scale_N.double()
    out = linear(x_BLK)
    assert out.dtype == torch.bfloat16
    # Two roundings to bf16 (2^-8 relative at most each): of the GEMM's output and of the scaled output.
    torch.testing.assert_close(out.double(), expected, rtol=2.0**-7, atol=1e-4)


def test_weight_bytes_and_dtypes(tiny_llama: Callable[..., Any]) -> None:
    directory, theirs = tiny_llama()
    total = sum(p.numel() for p in theirs.parameters())
    linear = [p for name, p in theirs.named_parameters() if "proj" in name]
    weights, channels = sum(p.numel() for p in linear), sum(p.shape[0] for p in linear)
    expected = {
        "fp32": 4 * total,
        "bf16": 2 * total,
        "fp8_e4m3_tensor": 2 * (total - weights) + weights + 4 * len(linear),
        "fp8_e4m3_channel": 2 * (total - weights) + weights + 4 * channels,
        "int8_channel": 2 * (total - weights) + weights + 4 * channels,
        "fp8_e4m3_dynamic": 2 * (total - weights) + weights + 4 * channels,
        "fp8_e4m3_block": 2 * (total - weights) + weights + 4 * len(linear),
        "mxfp8_e4m3": 2 * (total - weights) + weights + sum(p.shape[0] * -(-p.shape[1] // 32) for p in linear),
        "nvfp4": 2 * (total - weights) + weights // 2 + weights // 16 + 4 * len(linear),
    }
    assert list(expected) == list(PRECISIONS)
    for name, size in expected.items():
        model = load_model(directory)
        assert quantize_(model, get_precision(name)) == size
        assert model.embed_tokens.weight.dtype == get_precision(name).compute_dtype
        quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear | Nvfp4Linear)]
        assert len(quantized) == (len(linear) if name not in ("fp32", "bf16") else 0)
        assert all(module.scale_N.dtype == torch.float32 for module in quantized if name != "nvfp4")
        assert model.full(torch.arange(9)[None]).dtype == get_precision(name).compute_dtype


def test_head_stays_unquantized_when_untied(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama(tie_word_embeddings=False)[0])
    quantize_(model, INT8)
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_unknown_precision_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="'fp4' is unknown; there are fp32, bf16, fp8_e4m3_tensor"):
        get_precision("fp4")
