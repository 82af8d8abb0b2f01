"""The forward pass against transformers, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from serveproof.engine.loader import load_model

# With 256 trained positions and head_dim 8, some frequencies fall in each of llama3's three ranges.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "GQA, tied": {},
    "multi-head": {"num_key_value_heads": 6},
    "untied": {"tie_word_embeddings": False},
    "head_dim not hidden / heads": {"head_dim": 16},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "Qwen3": {"family": "Qwen3", "head_dim": 16, "tie_word_embeddings": False},
    "Mixtral": {"family": "Mixtral", "num_local_experts": 5, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "Qwen3-MoE": {
        "family": "Qwen3Moe",
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "Qwen3-MoE, gates not normalised": {
        "family": "Qwen3Moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": False,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_equal_transformers(variant: str, tiny_llama: Callable[..., Any]) -> None:
    directory, theirs = tiny_llama(**VARIANTS[variant])
    tokens_BL = torch.randint(0, 97, (2, 100), generator=torch.Generator().manual_seed(1))
    model = load_model(directory)
    logits_BLV = model.logits(model.full(tokens_BL))
    expected_BLV = theirs(tokens_BL).logits
    assert expected_BLV.std() > 0.5
    torch.testing.assert_close(logits_BLV, expected_BLV, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_scaling_changes_the_logits(tiny_llama: Callable[..., Any]) -> None:
    tokens_BL = torch.arange(90)[None]
    plain, scaled = (load_model(tiny_llama(**VARIANTS[name])[0]) for name in ("GQA, tied", "llama3"))
    assert not torch.allclose(plain.full(tokens_BL), scaled.full(tokens_BL), atol=1e-2)


@torch.inference_mode()
def test_causal_and_independent_of_the_batch(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama()[0])
    tokens_BL = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(2))
    whole = model.full(tokens_BL)
    torch.testing.assert_close(model.full(tokens_BL[1:2, :17]), whole[1:2, :17], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bf16_is_near_fp32(tiny_llama: Callable[..., Any]) -> None:
    directory, _ = tiny_llama()
    tokens_BL = torch.arange(90)[None]
    exact, rounded = load_model(directory).full(tokens_BL), load_model(directory, torch.bfloat16).full(tokens_BL)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 0.03
