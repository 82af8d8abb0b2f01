"""A decoder's profile by shape: every operation with its work, what would pay first; what doesn't fit is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from serveproof.profile_records import DecoderProfileRecord
from serveproof.results import read

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SHAPE))
    return file


def test_prefill_and_decode_with_their_work(
    script: ModuleType,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "decoder.json"
    asked = ["--model", str(config.parent), "--batch", "1", "3", "--context", "32", "--cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["inference_profiling", *asked])
    monkeypatch.setattr(script.os, "environ", script.os.environ)
    script.main()
    record = read(out, DecoderProfileRecord)
    assert [(one.phase, one.batch, one.tokens) for one in record.points] == [
        *(("prefill", 1, 32), ("prefill", 3, 96), ("decode", 1, 1), ("decode", 3, 3)),
    ]
    # q and o, k and v, gate and up and down, a layer; and the head, of the last tokens
    weights = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768)
    for point in record.points:
        found = point.profile
        assert found.status == "passed", found.reason
        products = sum(row.flops or 0.0 for row in found.hotspots if row.operation == "aten::mm")
        assert products == pytest.approx(2 * (point.tokens * weights + point.batch * 256 * 2000), rel=1e-6)
        assert [row.saved_ms for row in found.hotspots] == sorted(
            (row.saved_ms for row in found.hotspots), reverse=True
        )
        assert {"mlp", "attention", point.phase} <= {row.within for row in found.hotspots}
    assert "would pay, ms" in capsys.readouterr().out


def test_a_context_beyond_the_model_is_one_line(
    script: ModuleType, config: Path, main_error: Callable[..., str]
) -> None:
    error = main_error(script, "--model", config, "--context", "128", "--cpu")
    assert "the model has 128 positions" in error


def test_no_model_is_one_line(script: ModuleType, tmp_path: Path, main_error: Callable[..., str]) -> None:
    assert "no such file" in main_error(script, "--model", tmp_path / "config.json", "--cpu")
