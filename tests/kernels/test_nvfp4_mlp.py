"""NVFP4 by emulation: its roundings, its error, the blocks within the pair's bound; where the pair is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.verification import CORRUPTIONS, check, corrupt
from serveproof.ops import nvfp4

ROOT = Path(__file__).resolve().parents[2]
PAIR = pairs.load("nvfp4_mlp")
WORKLOADS = yaml.safe_load((ROOT / "config/workloads.yaml").read_text())["nvfp4_mlp"]
CASE = WORKLOADS["cpu"][0]
CODES = nvfp4.E2M1.tolist()


def emulated(inputs: dict[str, Any]) -> torch.Tensor:
    """The blocks as the recipe runs them: products in NVFP4, what lies between them in bfloat16."""
    x_MH = inputs["x_MH"]
    for up_FH, down_HF in zip(inputs["up_LFH"], inputs["down_LHF"], strict=True):
        hidden_MF = F.gelu(nvfp4.linear(x_MH, up_FH).bfloat16(), approximate="tanh")
        x_MH = nvfp4.linear(hidden_MF, down_HF).bfloat16()
    return x_MH


@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40))
def test_e2m1_is_the_nearest_code_ties_to_even_and_saturated(values: list[float]) -> None:
    rounded = nvfp4.to_e2m1(torch.tensor(values)).tolist()
    for value, got in zip(values, rounded, strict=True):
        distances = [abs(min(abs(value), 6.0) - code) for code in CODES]
        nearest = [index for index, distance in enumerate(distances) if distance == min(distances)]
        code = next(index for index in nearest if len(nearest) == 1 or index % 2 == 0)
        assert abs(got) == CODES[code]
        assert got * value >= 0


def test_e2m1_ties() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert nvfp4.to_e2m1(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert nvfp4.to_e2m1(-ties).abs().tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


@settings(max_examples=60, deadline=None)
@given(
    power=st.integers(-60, 60),
    scales=st.lists(st.sampled_from([0.5, 1.0, 1.125, 15.0, 320.0, 448.0]), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_nvfp4_can_hold_comes_back_unchanged(power: int, scales: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 8, (len(scales) + 1, nvfp4.BLOCK), generator=generator)
    codes[:, 0] = 7  # a block's scale is that of its largest value: one of them must be 6
    signs = torch.randint(0, 2, codes.shape, generator=generator) * 2.0 - 1
    x = nvfp4.E2M1[codes] * signs * torch.tensor([448.0, *scales])[:, None] * 2.0**power
    assert torch.equal(nvfp4.rounded(x), x)


def test_a_blocks_scale_is_itself_rounded_to_e4m3() -> None:
    x = torch.zeros(2, 16)
    x[0, 0] = 6 * 448.0  # the tensor's scale is 1
    x[1] = torch.linspace(0, 6 * 1.06, 16)  # wants 1.06, the nearest e4m3 is 1.0: what is beyond 6 saturates
    assert nvfp4.rounded(x)[1].max().item() == 6.0
    x[1] *= 1.07 / 1.06  # 1.07 goes to 1.125
    assert nvfp4.rounded(x)[1].max().item() == 6 * 1.125


@settings(max_examples=80, deadline=None)
@given(exponent=st.integers(-60, 110), spread=st.floats(0, 6), blocks=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_the_error_is_bounded_by_the_blocks_largest_value(exponent: int, spread: float, blocks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    decades = 10.0 ** (-spread * torch.rand(3, blocks, 1, generator=generator))
    x = (torch.randn(3, blocks, 16, generator=generator) * decades * 2.0**exponent).flatten(-2)
    got = nvfp4.rounded(x).double().unflatten(-1, (-1, 16))
    wide = x.double().unflatten(-1, (-1, 16))
    largest = wide.abs().amax(-1, keepdim=True)
    tensor_scale = wide.abs().amax() / (6 * 448)
    # E2M1's widest gap is 2 of 6, and the block's scale is off by 2^-4 at most, or by half of e4m3's smallest step.
    bound = largest / 6 * (1 + 2.0**-4) + 6 * 2.0**-10 * tensor_scale
    assert torch.isfinite(got).all()
    assert ((got - wide).abs() <= bound * 1.0001).all()


def test_zeros_extremes_and_a_partial_block() -> None:
    assert torch.equal(nvfp4.rounded(torch.zeros(2, 32)), torch.zeros(2, 32))
    one = torch.zeros(2, 32)
    one[0, 3] = -3e38
    assert torch.equal(nvfp4.rounded(one) != 0, one != 0)
    assert nvfp4.rounded(one)[0, 3].item() == pytest.approx(-3e38, rel=1e-5)
    one[1, 20] = float("nan")
    assert nvfp4.rounded(one).isnan()[1, 20]
    with pytest.raises(ValueError, match="not whole blocks of 16"):
        nvfp4.rounded(torch.ones(2, 20))


def test_normal_values_lose_about_a_tenth() -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    error = float((nvfp4.rounded(x) - x).norm() / x.norm())
    assert 0.08 < error < 0.11
    assert float((nvfp4.rounded(nvfp4.rounded(x)) - x).norm() / x.norm()) < 1.05 * error


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("changes", [{}, {"m": 1}, {"layers": 1}])
def test_emulated_blocks_stay_within_the_pairs_bound_which_rejects_what_is_wrong(
    changes: dict[str, int], seed: int
) -> None:
    made = PAIR.baseline.make_inputs(CASE["axes"] | changes, "cpu", seed)
    others = PAIR.baseline.make_inputs(CASE["axes"] | changes, "cpu", seed + 10)
    reference = PAIR.baseline.reference(made)
    assert reference.dtype == torch.float64
    output, stale = emulated(made), emulated(others)
    result = check(output, reference, CASE["optimized_tolerance_eps"])
    assert result.status == "passed", result.reason
    assert result.relative_error > 0.1  # the emulation does round to four bits
    for kind in CORRUPTIONS:
        wrong = corrupt(kind, output, stale)
        assert check(wrong, reference, CASE["optimized_tolerance_eps"]).status == "failed", kind


def test_the_baseline_meets_its_own_narrower_bound() -> None:
    made = PAIR.baseline.make_inputs(CASE["axes"], "cpu", 0)
    reference = PAIR.baseline.reference(made)
    output = PAIR.baseline.build(made)()
    assert check(output, reference, CASE["tolerance_eps"]).status == "passed"
    assert check(emulated(made), reference, CASE["tolerance_eps"]).status == "failed"


def test_weights_do_not_change_with_the_seed() -> None:
    made, others = (PAIR.baseline.make_inputs(CASE["axes"], "cpu", seed) for seed in (0, 1))
    assert torch.equal(made["up_LFH"], others["up_LFH"])
    assert torch.equal(made["down_LHF"], others["down_LHF"])
    assert not torch.equal(made["x_MH"], others["x_MH"])


def test_it_is_skipped_where_the_chip_lacks_nvfp4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: pytest.fail("no CUDA call on a CPU"))
    assert "this is a CPU" in PAIR.optimized.requires("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert PAIR.optimized.requires("cuda") == (
        "NVFP4 products need compute capability 10.0 or more; NVIDIA H200 has 9.0"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    found = {"transformer_engine": None}
    monkeypatch.setattr(PAIR.optimized.importlib.util, "find_spec", found.get)
    assert "transformer-engine is not installed" in PAIR.optimized.requires("cuda")
    found["transformer_engine"] = object()
    assert PAIR.optimized.requires("cuda") is None


def test_work_counts_half_a_byte_a_weight_and_a_scale_for_sixteen() -> None:
    work = PAIR.baseline.work({"m": 3, "hidden": 32, "ffn": 64, "layers": 2})
    assert work["flops"] == 2 * (2 * 3 * 32 * 64) * 2
    assert work["bytes"] == 2 * 2 * 32 * 64 * (1 / 2 + 1 / 16) + 2 * 2 * 3 * 32


def test_the_reference_tier_has_exactly_the_axes_of_the_public_record() -> None:
    import msgspec

    published = msgspec.json.decode((ROOT / "expectations_b200.json").read_bytes())["pairs"]["nvfp4_mlp"]
    assert {case["case"]: case["axes"] for case in WORKLOADS["reference"]} == {
        name: case["axes"] for name, case in published.items()
    }
