from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serveproof.engine.loader import INDEX, load_model, weight_files
from serveproof.errors import UserError
from serveproof.model_names import SHAPES, model_name


@pytest.fixture
def model(tiny_llama: Callable[..., Any]) -> Path:
    directory: Path = tiny_llama()[0]
    return directory


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def fails(directory: Path, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)


@torch.inference_mode()
def test_sharded_equals_whole(tiny_llama: Callable[..., Any]) -> None:
    (whole, _), (sharded, _) = tiny_llama(), tiny_llama(shard="40KB")
    assert len(weight_files(sharded)) > 1
    tokens_BL = torch.arange(20)[None]
    assert torch.equal(load_model(whole).full(tokens_BL), load_model(sharded).full(tokens_BL))


def test_dtype_and_no_gradients(model: Path) -> None:
    loaded = load_model(model, torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in loaded.parameters())


def test_copies_of_the_tied_embedding_and_old_frequencies_are_ignored(model: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(97, 48)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    rewrite(model, add)
    load_model(model)


def test_missing_directory_and_files(tmp_path: Path, model: Path) -> None:
    fails(tmp_path / "absent", "absent: no such directory")
    (model / "config.json").unlink()
    fails(model, r"config\.json: no such file")
    (model / "model.safetensors").unlink()
    fails(model, r"no \*\.safetensors")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    fails(tmp_path, "pickled")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(model: Path, keep: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    fails(model, r"model\.safetensors: not a whole safetensors file")


def test_tensors_that_do_not_fit(model: Path) -> None:
    rewrite(model, lambda tensors: tensors.pop("model.norm.weight"))
    fails(model, r"1 tensors are missing, norm\.weight first")
    rewrite(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
    fails(model, r"model\.norm\.weight has shape \(47,\)")
    rewrite(model, lambda tensors: tensors.update({"model.norm.bias": torch.ones(48)}))
    fails(model, r"model\.norm\.bias is not part of")


@pytest.mark.parametrize("name", ["absent.safetensors", "../model.safetensors"])
def test_index_names_a_shard_that_is_not_there(model: Path, name: str) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    fails(model, "named by .* but not there")


def test_broken_index_and_shards_without_one(model: Path) -> None:
    (model / INDEX).write_text("{}")
    fails(model, "not a safetensors index")
    (model / INDEX).unlink()
    (model / "model.safetensors").rename(model / "a.safetensors")
    assert weight_files(model) == [model / "a.safetensors"]
    (model / "b.safetensors").write_bytes(b"")
    fails(model, "download the index")


def test_a_model_is_called_by_what_it_was_prepared_from(model: Path, default_model: Path) -> None:
    assert model_name(default_model) == "SmolLM2-135M-Instruct"
    assert model_name(SHAPES / "llama-1b.json") == "llama-1b"
    assert model_name(model) == model.name
    (model / "model.json").write_text('{"of": "somebody else"}')
    assert model_name(model) == model.name
