"""Real fp8 numerics: torch's e4m3 and e5m2 against ml_dtypes, our scalings against both, products against float64.

What needs a GPU is skipped without one, with the reason. On a GPU the codes and scales that the CPU computes must be
the chip's bit for bit; `pytest --junitxml FILE` keeps a record of that run (machine, values compared). No such record
is published yet: the tests have not run on a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serveproof.engine.quantization import PRECISIONS, QuantizedLinear, quantize_weight, spread
from serveproof.ops import quantize

FORMATS = {torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.float8_e5m2: ml_dtypes.float8_e5m2}
SCALED = ("fp8_e4m3_tensor", "fp8_e4m3_channel", "fp8_e4m3_block", "mxfp8_e4m3")
NO_GPU = "needs a CUDA GPU with e4m3 (compute capability 8.9 or more); there is none here"
HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_GPU, reason=NO_GPU))]
on_gpu = pytest.mark.skipif(not HAS_GPU, reason=NO_GPU)
both_formats = pytest.mark.parametrize("dtype", FORMATS, ids=["e4m3", "e5m2"])


# Beyond it e4m3 has no value: ml_dtypes gives NaN, torch NaN or (2.13) the largest value. So everything here clamps.
LAST = {torch.float8_e4m3fn: 464.0, torch.float8_e5m2: np.inf}


def codes(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The bytes that ml_dtypes rounds float32 values to."""
    with np.errstate(all="ignore"):
        return x.astype(FORMATS[dtype]).view(np.uint8)


def in_range(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Values that the format has a nearest number for, and NaN."""
    return x[~(np.abs(x) > LAST[dtype])]


def torch_codes(x: np.ndarray, dtype: torch.dtype, device: str = "cpu") -> np.ndarray:
    return torch.from_numpy(x).to(device).to(dtype).view(torch.uint8).cpu().numpy()


def same(ours: np.ndarray, theirs: np.ndarray, dtype: torch.dtype) -> None:
    """Equal codes, but for the sign and payload of a NaN."""
    values = [np.atleast_1d(one).view(FORMATS[dtype]).astype(np.float32) for one in (ours, theirs)]
    nan = np.isnan(values[0])
    assert np.array_equal(nan, np.isnan(values[1]))
    assert np.array_equal(np.atleast_1d(ours)[~nan], np.atleast_1d(theirs)[~nan])


@both_formats
def test_every_code_means_the_same(dtype: torch.dtype) -> None:
    every = np.arange(256, dtype=np.uint8)
    ours = torch.from_numpy(every).view(dtype).float().numpy()
    theirs = every.view(FORMATS[dtype]).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)
    finite = theirs[np.isfinite(theirs)]
    # OCP 8-bit floating point: e4m3 has no infinity and one NaN a sign, e5m2 has both as IEEE has them
    assert finite.max() == torch.finfo(dtype).max == (448 if dtype == torch.float8_e4m3fn else 57344)
    assert np.isnan(theirs).sum() == (2 if dtype == torch.float8_e4m3fn else 6)
    assert np.isinf(theirs).sum() == (0 if dtype == torch.float8_e4m3fn else 2)
    assert finite[finite > 0].min() == (2.0**-9 if dtype == torch.float8_e4m3fn else 2.0**-16)


@both_formats
def test_ties_subnormals_and_what_is_too_large(dtype: torch.dtype) -> None:
    values = np.arange(128, dtype=np.uint8).view(FORMATS[dtype]).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    beside = np.concatenate([np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(0))])
    step = values[-1] - values[-2]
    edge = values[-1] + step / 2  # the last that rounds to the largest value, or ties with what would follow it
    large = np.float32([edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(np.inf)), 1e30])
    special = np.float32([0.0, np.inf, np.nan, values[1] / 2, values[1] / 4, 1e-30])
    all_ = np.concatenate([values, ties, beside, large, special]).astype(np.float32)
    for x in (in_range(all_, dtype), -in_range(all_, dtype)):
        same(torch_codes(x, dtype), codes(x, dtype), dtype)
    beyond = all_[np.abs(all_) > LAST[dtype]]
    given = torch.from_numpy(beyond).to(dtype).float().numpy()
    assert np.all(np.isnan(given) | (given == torch.finfo(dtype).max))


@both_formats
@given(x=arrays.arrays(np.float32, 64, elements=st.floats(width=32)))
def test_rounding_of_any_float32(dtype: torch.dtype, x: np.ndarray) -> None:
    x = in_range(x, dtype)
    same(torch_codes(x, dtype), codes(x, dtype), dtype)


@both_formats
def test_rounding_of_every_bf16(dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[~(every.float().abs() > LAST[dtype])]
    same(every.to(dtype).view(torch.uint8).numpy(), codes(every.float().numpy(), dtype), dtype)


def reference(weight_NK: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scale of each element) from the definitions alone, by ml_dtypes and float32 numpy."""
    rows, columns = weight_NK.shape
    height, width = {
        "fp8_e4m3_tensor": (rows, columns),
        "fp8_e4m3_channel": (1, columns),
        "fp8_e4m3_block": (128, 128),
        "mxfp8_e4m3": (1, 32),
    }[name]
    scale_NK = np.ones_like(weight_NK)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            block = (slice(row, row + height), slice(column, column + width))
            largest = np.abs(weight_NK[block]).max()
            if largest == 0:
                continue
            if name == "mxfp8_e4m3":
                power = np.float32(2.0) ** (np.floor(np.log2(np.float64(largest))) - 8)
                assert float(np.float32(power).astype(ml_dtypes.float8_e8m0fnu)) == power
                scale_NK[block] = power
            else:
                scale_NK[block] = largest / np.float32(448)
    scaled_NK = np.clip(weight_NK / scale_NK, -448, 448)
    return codes(scaled_NK, torch.float8_e4m3fn), scale_NK


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("shape", [(1, 32), (130, 257), (256, 384)], ids=str)
def test_scalings(
    name: str, shape: tuple[int, int], device: str, record_property: Callable[[str, object], None]
) -> None:
    generator = np.random.default_rng(0)
    weight_NK = (generator.normal(size=shape) * np.exp(generator.normal(size=(shape[0], 1)) * 4)).astype(np.float32)
    weight_NK[0, :5] = 0
    if shape[0] > 3:
        weight_NK[2] = 0
        weight_NK[3] *= 1e-30  # below what a scale of one row can lose
    values_NK, scale = quantize_weight(torch.from_numpy(weight_NK).to(device), PRECISIONS[name])
    expected_NK, scale_NK = reference(weight_NK, name)
    got = spread(scale, PRECISIONS[name], values_NK.shape).expand(shape).cpu().numpy()
    np.testing.assert_array_equal(got, scale_NK)
    same(values_NK.view(torch.uint8).cpu().numpy(), expected_NK, torch.float8_e4m3fn)
    record_property("machine", torch.cuda.get_device_name() if device == "cuda" else "CPU")
    record_property("values_equal", int(expected_NK.size))


def test_mx_saturates_what_its_power_of_two_leaves_above_448() -> None:
    weight_NK = torch.tensor([[500.0, 511.0, -505.0, *[1.0] * 29]])
    values_NK, scale = quantize_weight(weight_NK, PRECISIONS["mxfp8_e4m3"])
    assert scale.tolist() == [[1.0]]
    assert values_NK.float()[0, :4].tolist() == [448.0, 448.0, -448.0, 1.0]


@pytest.mark.parametrize("name", SCALED)
def test_the_emulated_layer_is_the_product_of_the_stored_numbers(name: str) -> None:
    torch.manual_seed(0)
    weight_NK, x_MK = torch.randn(160, 300) / 17, torch.randn(9, 300).bfloat16()
    values_NK, scale = quantize_weight(weight_NK, PRECISIONS[name])
    stored_NK = values_NK.double() * spread(scale, PRECISIONS[name], values_NK.shape).double()
    got_MN = QuantizedLinear(weight_NK, PRECISIONS[name])(x_MK)
    # roundings of the output to bf16: one of each piece of 128 inputs, and one of the whole
    torch.testing.assert_close(got_MN.double(), x_MK.double() @ stored_NK.T, rtol=2.0**-7, atol=2.0**-7)


# Hopper's tensor cores keep about 14 bits of a float8 product's sum: DeepSeek-V3, arXiv:2412.19437, section 3.3.2
SUM_ROUNDING = {"cpu": 0.0, "cuda": 2.0**-13}


def skip_without_row_scales(device: str) -> None:
    """torch's CPU product took one scale a tensor before 2.13."""
    if device == "cpu" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip(f"torch {torch.__version__} takes one scale a tensor on a CPU")


def scaled_mm(device: str, rowwise: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(torch._scaled_mm, the same numbers' product in float64, the product of their magnitudes)."""
    torch.manual_seed(0)
    x_MK, w_NK = torch.randn(64, 256, device=device).bfloat16(), torch.randn(96, 256, device=device)
    if rowwise:
        q_MK, scale_a = quantize.quantize_rows(x_MK)
        w8_NK, scale_N = quantize_weight(w_NK, PRECISIONS["fp8_e4m3_channel"])
        scale_b = scale_N[None]
    else:
        q_MK, scale_a = quantize.quantize_tensor(x_MK)
        w8_NK, scale_N = quantize_weight(w_NK, PRECISIONS["fp8_e4m3_tensor"])
        scale_b = scale_N[0]
    got_MN = torch._scaled_mm(q_MK, w8_NK.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16)
    left_MK, right_KN = q_MK.double() * scale_a.double(), (w8_NK.double() * scale_N.double()[:, None]).T
    return got_MN, left_MK @ right_KN, left_MK.abs() @ right_KN.abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rowwise", [True, False], ids=["row", "tensor"])
def test_torchs_scaled_product(device: str, rowwise: bool) -> None:
    if rowwise:
        skip_without_row_scales(device)
    got_MN, expected_MN, magnitude_MN = scaled_mm(device, rowwise)
    bound_MN = 2.0**-8 * (1 + expected_MN.abs()) + SUM_ROUNDING[device] * magnitude_MN
    assert ((got_MN.double() - expected_MN).abs() <= bound_MN).all()
    # the bound rejects a scale that is wrong by a thirty-second
    other_MN = expected_MN * (1 + 2.0**-5)
    assert ((got_MN.double() - other_MN).abs() > bound_MN).any()


def test_what_the_cpu_evaluates_is_what_the_engine_serves_in_fp8() -> None:
    """fp8_e4m3_dynamic against torch._scaled_mm of the same codes: apart by one rounding to bf16 before the scale."""
    skip_without_row_scales("cpu")
    torch.manual_seed(1)
    weight_NK, x_MK = torch.randn(96, 256) / 16, torch.randn(32, 256).bfloat16()
    emulated_MN = QuantizedLinear(weight_NK, PRECISIONS["fp8_e4m3_dynamic"])(x_MK)
    q_MK, scale_M1 = quantize.quantize_rows_torch(x_MK)
    w8_NK, scale_N = quantize_weight(weight_NK, PRECISIONS["fp8_e4m3_dynamic"])
    served_MN = torch._scaled_mm(q_MK, w8_NK.t(), scale_a=scale_M1, scale_b=scale_N[None], out_dtype=torch.bfloat16)
    torch.testing.assert_close(emulated_MN, served_MN, rtol=2.0**-6, atol=2.0**-8)
    assert (emulated_MN.float() - x_MK.float() @ weight_NK.T).abs().max() > 2.0**-6


@on_gpu
@both_formats
def test_the_chip_rounds_as_the_cpu(dtype: torch.dtype, record_property: Callable[[str, object], None]) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32))
    largest = torch.finfo(dtype).max
    for x in (every.clamp(-largest, largest), random.clamp(-largest, largest)):
        same(x.cuda().to(dtype).view(torch.uint8).cpu().numpy(), x.to(dtype).view(torch.uint8).numpy(), dtype)
    record_property("machine", torch.cuda.get_device_name())
    record_property("values_equal", len(every) + len(random))


@on_gpu
def test_the_fused_cast_is_the_cpus_bit_for_bit(record_property: Callable[[str, object], None]) -> None:
    torch.manual_seed(0)
    x_MK = (torch.randn(257, 1024) * torch.exp(4 * torch.randn(257, 1))).bfloat16()
    expected, scale = quantize.quantize_rows_torch(x_MK)
    got, got_scale = quantize.quantize_rows(x_MK.cuda())
    assert torch.equal(got_scale.cpu(), scale)
    assert torch.equal(got.view(torch.uint8).cpu(), expected.view(torch.uint8))
    record_property("machine", torch.cuda.get_device_name())
    record_property("values_equal", x_MK.numel())


@on_gpu
@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
)
def test_transformer_engines_linear_is_the_emulated_product() -> None:
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe

    torch.manual_seed(0)
    layer: Any = te.Linear(1024, 512, bias=False, params_dtype=torch.bfloat16).cuda()
    x_MK = torch.randn(256, 1024, device="cuda").bfloat16()
    with torch.inference_mode(), te.fp8_autocast(fp8_recipe=recipe.Float8CurrentScaling()):
        got_MN = layer(x_MK).double()
    w_NK = layer.weight.detach().float()
    q_MK, scale = quantize.quantize_tensor(x_MK)
    w8_NK, scale_1 = quantize_weight(w_NK, PRECISIONS["fp8_e4m3_tensor"])
    emulated_MN = (q_MK.double() * scale.double()) @ (w8_NK.double() * scale_1.double()).T
    plain_MN = x_MK.double() @ w_NK.double().T
    # the same numbers in another order of sums; a product of other numbers would be as far as the unquantized one
    assert (got_MN - emulated_MN).norm() < 0.25 * (plain_MN - emulated_MN).norm()
