"""Fused and packed weights against the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.engine.linear import INT4_GROUP, INT8_ROWS, Int4Linear, Int8Linear, fuse_, pack_
from serveproof.engine.loader import load_model
from serveproof.errors import UserError

WIDE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@torch.inference_mode()
def test_fusing_changes_nothing(family: str, tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama(family=family)[0])
    tokens_BL = torch.arange(60)[None]
    before = model.full(tokens_BL)
    fuse_(model)
    fuse_(model)
    torch.testing.assert_close(model.full(tokens_BL), before, rtol=1e-5, atol=1e-5)
    assert not any("q_proj" in name or "up_proj" in name.split("gate_")[0] for name, _ in model.named_parameters())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 2, INT8_ROWS, INT8_ROWS + 1, 40]),
    outputs=st.sampled_from([16, 48, 80]),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_packed_is_the_rounded_weight(rows: int, outputs: int, groups: int, seed: int) -> None:
    """Against the weight reconstructed from what is stored, in float64; the kernels' sums are bf16's."""
    generator = torch.Generator().manual_seed(seed)
    weight_NK = torch.randn(outputs, groups * INT4_GROUP, generator=generator).to(torch.bfloat16)
    weight_NK[0] = 0
    x_MK = torch.randn(rows, groups * INT4_GROUP, generator=generator).to(torch.bfloat16)
    int8, int4 = Int8Linear(weight_NK), Int4Linear(weight_NK)
    stored8 = int8.values_NK.double() * int8.scale_N.double()[:, None]
    for layer, near in ((int8, 1 / 127), (int4, 1 / 15)):
        found = layer(x_MK).double()
        assert found.shape == (rows, outputs)
        expected = x_MK.double() @ weight_NK.double().T
        size = weight_NK.double().abs().amax(1) * x_MK.double().abs().sum(1, keepdim=True)
        # half a step of every weight, and bf16's rounding
        assert bool(((found - expected).abs() <= near * size + 0.01 * expected.abs() + 1e-3).all())
    exact = x_MK.double() @ stored8.T
    torch.testing.assert_close(int8(x_MK).double(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@torch.inference_mode()
def test_a_packed_model_is_near(tiny_llama: Callable[..., Any]) -> None:
    directory, _ = tiny_llama(**WIDE)
    tokens_BL = torch.arange(60)[None]
    exact = load_model(directory)
    expected = exact.logits(exact.full(tokens_BL))
    errors = {}
    for weights in ("int8", "int4"):
        model = load_model(directory, torch.bfloat16)
        fuse_(model)
        pack_(model, weights)
        found = model.logits(model.full(tokens_BL)[0]).float()[None]
        errors[weights] = float((found - expected).norm() / expected.norm())
    assert 0 < errors["int8"] < 0.05
    assert errors["int8"] < errors["int4"] < 0.5


def test_what_cannot_be_packed(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama()[0], torch.bfloat16)
    with pytest.raises(UserError, match="'int3' is unknown; there are int8, int4, fp8"):
        pack_(model, "int3")
    with pytest.raises(UserError, match="'fp8' has no kernel on cpu"):
        pack_(model, "fp8")
    fuse_(model)
    with pytest.raises(UserError, match="o_proj is 48 x 48, int4's kernel takes multiples of 16 x 32"):
        pack_(model, "int4")
    with pytest.raises(UserError, match="needs dtype bf16"):
        pack_(load_model(tiny_llama()[0]), "int8")
