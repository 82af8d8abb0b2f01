from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serveproof.engine.config import RopeScaling, parse_config, read_config
from serveproof.errors import UserError

FIELDS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": [1, 2],
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_fields_and_defaults() -> None:
    config = parse_config(FIELDS)
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (64, 8, 500000.0)
    assert config.rope_scaling is None
    assert config.tie_word_embeddings is False
    assert config.eos_token_ids == (1, 2)
    assert parse_config({**FIELDS, "head_dim": 128, "num_key_value_heads": None}).num_key_value_heads == 32


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
)
def test_both_spellings_of_rope(rope: dict[str, Any]) -> None:
    config = parse_config({**FIELDS, **rope})
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)


def test_old_key_of_the_rope_type() -> None:
    config = parse_config({**FIELDS, "rope_scaling": {"type": "linear", "factor": 2}})
    assert config.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported is LlamaForCausalLM"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "factor"),
        ({"sliding_window": 16}, "sliding_window = 16"),
        ({"mlp_only_layers": [1]}, "layers without experts"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "low_freq_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"hidden_size": None}, "missing or wrong"),
    ],
)
def test_unsupported_is_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("(", r"\(")) as caught:
        parse_config({**FIELDS, **changes}, "model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), [(None, "no such file"), ("{", "not JSON"), ("[]", "not a JSON")])
def test_broken_file(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    assert read_config(tmp_path / "config.json").vocab_size == 128256
