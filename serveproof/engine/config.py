"""What the engine needs to know of a model: the fields of a Hugging Face config.json, under their own names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serveproof.errors import UserError

# architecture -> (queries and keys are normed, mixture of experts)
FAMILIES = {
    "LlamaForCausalLM": (False, False),
    "Qwen3ForCausalLM": (True, False),
    "MixtralForCausalLM": (False, True),
    "Qwen3MoeForCausalLM": (True, True),
}
MODEL_TYPES = {"llama": "Llama", "qwen3": "Qwen3", "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}
SUPPORTED = f"{', '.join(FAMILIES)} (RMSNorm, RoPE, GQA, SwiGLU, no biases, no sliding window)"


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's inverse frequencies are stretched for contexts longer than those trained on.

    rope_type `linear` divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595). `llama3` divides only
    the low frequencies and interpolates the middle ones by low_freq_factor, high_freq_factor and the trained context
    (Llama 3.1). `yarn` interpolates between turns beta_slow and beta_fast and scales cos and sin by attention_factor
    (Peng et al. 2023, arXiv:2309.00071).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: count, choices a token, width; normalised: the chosen gates are made to sum to 1."""

    count: int
    per_token: int
    intermediate_size: int
    normalised: bool


@dataclass(frozen=True)
class ModelConfig:
    """One model of the Llama family.

    `num_key_value_heads` < `num_attention_heads` is grouped-query attention (GQA). qk_norm: RMSNorm of each query and
    key head (Qwen3). experts: in every layer, instead of one MLP.
    """

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
    qk_norm: bool = False
    experts: Experts | None = None


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
    if architecture in MODEL_TYPES:
        architecture = f"{MODEL_TYPES[architecture]}ForCausalLM"
    if architecture not in FAMILIES:
        raise UserError(f"{where}: architecture {architecture} is not supported; supported is {SUPPORTED}")
    _refuse_variants(fields, where)
    try:
        return _convert(fields, where, *FAMILIES[architecture])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: field {error} is missing or wrong; download the model's config.json again") from None


def _refuse_variants(fields: dict[str, Any], where: str) -> None:
    """Settings that would change the arithmetic without changing the architecture's name."""
    expected = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    for key, value in expected.items():
        if fields.get(key, value) != value:
            raise UserError(f"{where}: {key} = {fields[key]!r} is not supported; supported is {SUPPORTED}")
    window = fields.get("sliding_window")
    if window and fields.get("use_sliding_window", True) and window < fields.get("max_position_embeddings", 0):
        raise UserError(f"{where}: sliding_window = {window} is not supported; supported is {SUPPORTED}")
    if fields.get("mlp_only_layers") or fields.get("decoder_sparse_step", 1) != 1:
        raise UserError(f"{where}: layers without experts among those with them are not supported")
    if fields.get("quantization_config"):
        raise UserError(f"{where}: the weights are already quantised (quantization_config); name the original model")


def _convert(fields: dict[str, Any], where: str, qk_norm: bool, experts: bool) -> ModelConfig:
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
        qk_norm=qk_norm,
        experts=_experts(fields) if experts else None,
    )


def _experts(fields: dict[str, Any]) -> Experts:
    """Mixtral names its count num_local_experts and always normalises; Qwen3-MoE says both."""
    qwen = "moe_intermediate_size" in fields
    return Experts(
        count=int(fields.get("num_experts") or fields["num_local_experts"]),
        per_token=int(fields["num_experts_per_tok"]),
        intermediate_size=int(fields["moe_intermediate_size" if qwen else "intermediate_size"]),
        normalised=bool(fields.get("norm_topk_prob", False)) if qwen else True,
    )


def _rope_scaling(rope: dict[str, Any], context: int, where: str) -> RopeScaling | None:
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported; supported is {SUPPORTED}")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind == "dynamic":
        # NTK by length stretches only beyond max_position_embeddings, and there no request goes: start.py refuses it
        float(rope["factor"])
        return None
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
    if kind == "yarn":
        factor = float(rope["factor"])
        return RopeScaling(
            "yarn",
            factor,
            original_max_position_embeddings=int(rope.get("original_max_position_embeddings") or context),
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            attention_factor=float(rope.get("attention_factor") or 0.1 * math.log(factor) + 1.0),
        )
    known = "default, linear, dynamic, llama3 and yarn"
    raise UserError(f"{where}: RoPE scaling {kind!r} is not supported; supported are {known}")
