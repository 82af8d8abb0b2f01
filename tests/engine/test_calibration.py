"""Calibrated precisions by torchao, on tiny models whose shapes its kernels take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serveproof import config
from serveproof.bench.perplexity import evaluate, left_out
from serveproof.engine.calibration import CALIBRATED, calibrate_, refusal
from serveproof.engine.loader import load_model
from serveproof.errors import UserError

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("name", ["int4_group32", "int4_awq", "int8_smoothquant"])
def test_outputs_stay_near_and_bytes_are_counted(tiny_llama: Callable[..., Any], name: str) -> None:
    directory, theirs = tiny_llama(**SHAPE)
    precision = CALIBRATED[name]
    tokens_BL = torch.randint(97, (2, 48), generator=torch.Generator().manual_seed(1))
    plain, model = load_model(directory), load_model(directory)
    size = calibrate_(model, precision, tokens_BL)
    linear = [p for name, p in theirs.named_parameters() if "proj" in name]
    total, weights = sum(p.numel() for p in theirs.parameters()), sum(p.numel() for p in linear)
    inputs, outputs = sum(p.shape[1] for p in linear), sum(p.shape[0] for p in linear)
    groups = sum(p.shape[0] * (p.shape[1] // 32) for p in linear)
    scales = 4 * groups if precision.bits == 4 else 2 * outputs
    assert size == 2 * (total - weights) + weights * precision.bits // 8 + scales + (
        0 if precision.method == "none" else 2 * inputs
    )
    x_MK = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.inference_mode():
        expected, got = (one.layers[0].mlp.gate_proj(x_MK.to(one.norm.weight.dtype)).float() for one in (plain, model))
        assert torch.isfinite(model.full(tokens_BL)).all()
    error = float((got - expected).norm() / expected.norm())
    # 32 normal weights span about 4 deviations, in 15 steps: 4 / 15 / sqrt(12) = 0.077; of 8 bits a sixteenth of that
    assert 0.003 < error < (0.1 if precision.bits == 4 else 0.02)


def test_gptq_takes_a_rows_scale_from_all_of_it(
    tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arithmetic runs on a CPU too, less the assertion that it doesn't; a wide weight past column 256 is kept."""
    from torchao.prototype.gptq import api

    source = inspect.getsource(api.gptq_quantize).replace("torch.cuda.synchronize()", "pass")
    source = re.sub(r'assert device.type == "cuda".*', "pass", source)
    names = dict(vars(api))
    exec(compile(source, api.__file__, "exec"), names)  # noqa: S102 (torchao's own source)
    monkeypatch.setattr(api, "gptq_quantize", names["gptq_quantize"])
    model = load_model(tiny_llama(**SHAPE | {"intermediate_size": 320})[0])
    weight_EF = model.layers[0].mlp.down_proj.weight
    weight_EF.data[:, 300] *= 8
    expected_EF = weight_EF.float().clone()
    tokens_BL = torch.randint(97, (8, 64), generator=torch.Generator().manual_seed(1))
    calibrate_(model, replace(CALIBRATED["int8_gptq"], devices=("cpu",)), tokens_BL)
    got_EF = model.layers[0].mlp.down_proj.weight.dequantize().float()
    error_E = (got_EF - expected_EF)[:, 300].abs() / expected_EF.abs().amax(1)
    assert error_E.max() < 0.02


def test_a_precision_enters_the_same_table(tiny_llama: Callable[..., Any]) -> None:
    tokens = np.random.default_rng(3).integers(0, 97, 300)
    calibration = np.random.default_rng(4).integers(0, 97, (2, 64))
    directory = tiny_llama(**SHAPE)[0]
    found, _ = evaluate(directory, tokens, ["int4_awq"], 64, 32, calibration=calibration, every=2)
    assert [one.precision for one in found] == ["fp32", "bf16", "int4_awq"]
    assert found[0].divergence is None
    assert found[1].divergence is not None
    assert found[2].divergence is not None
    assert found[2].divergence.kl.low > found[1].divergence.kl.high
    with pytest.raises(UserError, match="int4_awq needs a text to calibrate on"):
        evaluate(directory, tokens, ["int4_awq"], 64, 32)


def test_what_cannot_be_had_says_why(tiny_llama: Callable[..., Any]) -> None:
    assert left_out(["int8_gptq", "int4_awq"], "cpu") == {"int8_gptq": "torchao's GPTQ runs on CUDA only"}
    assert refusal(CALIBRATED["int8_gptq"], "cuda") == ""
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    with pytest.raises(UserError, match="int8_gptq: torchao's GPTQ runs on CUDA only"):
        calibrate_(load_model(tiny_llama(**SHAPE)[0]), CALIBRATED["int8_gptq"], tokens)
    with pytest.raises(UserError, match=r"q_proj is 48 x 48, torchao's int4 takes multiples of 32 x 32"):
        calibrate_(load_model(tiny_llama()[0]), CALIBRATED["int4_awq"], tokens)


def test_settings_know_which_are_calibrated() -> None:
    assert tuple(CALIBRATED) == config.CALIBRATED
