"""Reads a Llama-family GGUF file: its config as Hugging Face fields, and its weights dequantized to float32.

transformers can do the same but takes ten times as long and needs accelerate for it. Layout and names: the GGUF
specification of ggml, and llama.cpp's convert_hf_to_gguf.py, which permutes the rows of the query and key weights.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from serveproof.errors import UserError

MEND = "name a Llama-family GGUF, or a Hugging Face directory of safetensors, as `model` in config/config.yaml"
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class GgufModel:
    """An opened GGUF. `fields` are those of a config.json; `quantisation` is the type of most of its weights (Q4_1)."""

    path: Path
    name: str
    license: str
    quantisation: str
    fields: dict[str, Any]
    tensors: list[Any]


def open_gguf(path: Path | str) -> GgufModel:
    """Read a GGUF's metadata; the weights stay on disk until `weights` asks for them.

    Raises UserError for a missing, foreign or truncated file, for another architecture, and for one without tokenizer.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {MEND}")
    with path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file (it does not begin with GGUF); {MEND}")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: cut short or damaged GGUF ({error}); download it again") from None
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path}: GGUF of architecture {architecture!r}, supported is 'llama'; {MEND}")
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names or metadata.get("llama.rope.scaling.type") not in (None, "none"):
        raise UserError(f"{path}: GGUF with RoPE scaling is not supported; name the model's safetensors directory")
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise UserError(f"{path}: GGUF without a tokenizer; {MEND}")
    counts = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    try:
        return GgufModel(
            path=path,
            name=str(metadata.get("general.name") or path.stem),
            license=str(metadata.get("general.license") or "not stated in the GGUF"),
            quantisation=counts.most_common(1)[0][0],
            fields=_config_fields(reader, metadata, tied="output.weight" not in names),
            tensors=list(reader.tensors),
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: GGUF without {error}; {MEND}") from None


def weights(model: GgufModel) -> dict[str, NDArray[np.float32]]:
    """Every weight under its Hugging Face name, dequantized to float32.

    Raises UserError for a tensor that a Llama does not have or a quantisation that the gguf package cannot read.
    """
    heads = {"attn_q": model.fields["num_attention_heads"], "attn_k": model.fields["num_key_value_heads"]}
    found = {}
    for tensor in model.tensors:
        try:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError:
            raise UserError(f"{model.path}: no dequantization for {tensor.tensor_type.name}; {MEND}") from None
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if match and match[2] in _LAYER:
            if match[2] in heads:
                weight = _unpermute(weight, heads[match[2]])
            found[f"model.layers.{match[1]}.{_LAYER[match[2]]}.weight"] = weight
        elif tensor.name in _TOP:
            found[_TOP[tensor.name]] = weight
        else:
            raise UserError(f"{model.path}: tensor {tensor.name} is not part of a plain Llama; {MEND}")
    return found


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """From llama.cpp's interleaved pairs of RoPE rows back to Hugging Face's halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config_fields(reader: Any, metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    def token_id(key: str) -> int | None:
        field = reader.fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if field is None else int(field.contents())

    heads = int(metadata["llama.attention.head_count"])
    hidden = int(metadata["llama.embedding_length"])
    # float32 in the file: 1e-5 arrives as 9.999999747378752e-06, which is what llama.cpp computes with, too.
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": hidden,
        "intermediate_size": int(metadata["llama.feed_forward_length"]),
        "num_hidden_layers": int(metadata["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(metadata.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(metadata.get("llama.attention.key_length", hidden // heads)),
        "max_position_embeddings": int(metadata["llama.context_length"]),
        "rms_norm_eps": float(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(metadata.get("llama.rope.freq_base", 10000.0))},
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": token_id("bos"),
        "eos_token_id": token_id("eos"),
        "dtype": "float32",
    }
