"""Reading GGUF files written here with the gguf package: names, row permutation, dequantization, bad files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from serveproof.engine.config import parse_config
from serveproof.engine.gguf_reader import open_gguf, weights
from serveproof.errors import UserError

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCABULARY = 4, 2, 8, 32, 64, 11
SHAPES = {
    "token_embd": (VOCABULARY, HIDDEN),
    "output_norm": (HIDDEN,),
    "blk.0.attn_norm": (HIDDEN,),
    "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_norm": (HIDDEN,),
    "blk.0.ffn_gate": (FFN, HIDDEN),
    "blk.0.ffn_up": (FFN, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, FFN),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    def make(
        architecture: str = "llama",
        tokenizer: bool = True,
        scaling: str = "",
        extra: str = "",
        quantise: gguf.GGMLQuantizationType | None = None,
    ) -> tuple[Path, dict[str, np.ndarray]]:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(1e4)
        if scaling:
            writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        if tokenizer:
            writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
            writer.add_eos_token_id(2)
        random = np.random.default_rng(0)
        tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        if extra:
            tensors[extra] = np.ones(4, np.float32)
        for name, tensor in tensors.items():
            if quantise and tensor.ndim == 2:
                writer.add_tensor(f"{name}.weight", gguf.quantize(tensor, quantise), raw_dtype=quantise)
            else:
                writer.add_tensor(f"{name}.weight", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, tensors

    return make


def test_config_and_names(write: Callable[..., Any]) -> None:
    model = open_gguf(write()[0])
    config = parse_config(model.fields)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (config.vocab_size, config.tie_word_embeddings, config.eos_token_ids) == (VOCABULARY, True, (2,))
    assert model.quantisation == "F32"
    assert (model.name, model.license) == ("tiny", "not stated in the GGUF")
    assert len(weights(model)) == len(SHAPES)


def test_query_rows_come_back_in_hugging_face_order(write: Callable[..., Any]) -> None:
    path, tensors = write()
    found = weights(open_gguf(path))
    for name, heads in (("q", HEADS), ("k", KV_HEADS)):
        restored = found[f"model.layers.0.self_attn.{name}_proj.weight"]
        # llama.cpp's convert_hf_to_gguf.py permutes like this; what was read must give what was written.
        halves = restored.reshape(heads, 2, HEAD_DIM // 2, HIDDEN)
        assert np.array_equal(halves.swapaxes(1, 2).reshape(restored.shape), tensors[f"blk.0.attn_{name}"])
    assert np.array_equal(found["model.layers.0.self_attn.v_proj.weight"], tensors["blk.0.attn_v"])


def test_dequantizes(write: Callable[..., Any]) -> None:
    path, tensors = write(quantise=gguf.GGMLQuantizationType.Q8_0)
    model = open_gguf(path)
    assert model.quantisation == "Q8_0"
    found = weights(model)["model.layers.0.mlp.down_proj.weight"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - tensors["blk.0.ffn_down"]).max() < 0.02


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', supported is 'llama'"),
        ({"tokenizer": False}, "without a tokenizer"),
        ({"scaling": "yarn"}, "RoPE scaling"),
        ({"extra": "rope_freqs"}, "RoPE scaling"),
        ({"extra": "blk.0.attn_q_norm"}, "not part of a plain Llama"),
    ],
)
def test_other_models_are_refused(write: Callable[..., Any], options: dict[str, Any], expected: str) -> None:
    path, _ = write(**options)
    with pytest.raises(UserError, match=expected):
        weights(open_gguf(path))


@pytest.mark.parametrize("keep", [4, 30, 200, 1500, -1])
def test_truncated(write: Callable[..., Any], keep: int) -> None:
    path, _ = write()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"tiny\.gguf: cut short or damaged"):
        open_gguf(path)


def test_foreign_and_missing(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(UserError, match="does not begin with GGUF"):
        open_gguf(tmp_path / "text.gguf")
    with pytest.raises(UserError, match="no such file"):
        open_gguf(tmp_path / "absent.gguf")
