"""What the engine needs to know of a model: the fields of a Hugging Face config.json, under their own names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serveproof.errors import UserError

SUPPORTED = "LlamaForCausalLM (RMSNorm, RoPE, GQA, SwiGLU, no biases)"


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's inverse frequencies are stretched for contexts longer than those trained on.

    rope_type `linear` divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595). `llama3` divides only
    the low frequencies and interpolates the middle ones; the last three fields are its own (Llama 3.1).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """One Llama-family model. `num_key_value_heads` < `num_attention_heads` is grouped-query attention (GQA)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_config(path: Path | str) -> ModelConfig:
    """Read a config.json. Raises UserError for a missing or broken file and for a model that is not supported."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; a model directory needs a Hugging Face config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); download the model's config.json again") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object; download the model's config.json again")
    return parse_config(fields, str(path))


def parse_config(fields: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Check and convert the fields of a config.json; `where` names it in errors.

    Both spellings of RoPE's settings are read: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling`.
    """
    architecture = str((fields.get("architectures") or [fields.get("model_type", "unknown")])[0])
    if architecture not in ("LlamaForCausalLM", "llama"):
        raise UserError(f"{where}: architecture {architecture} is not supported; supported is {SUPPORTED}")
    _refuse_variants(fields, where)
    try:
        return _convert(fields, where)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: field {error} is missing or wrong; download the model's config.json again") from None


def _refuse_variants(fields: dict[str, Any], where: str) -> None:
    """Settings that would change the arithmetic without changing the architecture's name."""
    expected = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    for key, value in expected.items():
        if fields.get(key, value) != value:
            raise UserError(f"{where}: {key} = {fields[key]!r} is not supported; supported is {SUPPORTED}")
    if fields.get("quantization_config"):
        raise UserError(f"{where}: the weights are already quantised (quantization_config); name the original model")


def _convert(fields: dict[str, Any], where: str) -> ModelConfig:
    hidden, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
    kv_heads = int(fields.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    context = int(fields["max_position_embeddings"])
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    eos = fields.get("eos_token_id")
    return ModelConfig(
        vocab_size=int(fields["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(fields["intermediate_size"]),
        num_hidden_layers=int(fields["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=int(fields.get("head_dim") or hidden // heads),
        max_position_embeddings=context,
        rms_norm_eps=float(fields["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope, context, where),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
    )


def _rope_scaling(rope: dict[str, Any], context: int, where: str) -> RopeScaling | None:
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported; supported is {SUPPORTED}")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope.get("original_max_position_embeddings") or context),
        )
    raise UserError(f"{where}: RoPE scaling {kind!r} is not supported; supported are default, linear and llama3")
