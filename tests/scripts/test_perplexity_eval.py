from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from serveproof import results
from serveproof.accuracy_records import PerplexityRecord

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = 300


@pytest.fixture
def inputs(tiny_llama: Callable[..., Any], load_script: Callable[[str], ModuleType], tmp_path: Path) -> list[object]:
    """A tiny prepared model and a text of 300 words, each of them one token, as the script's arguments."""
    directory = tiny_llama()[0]
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    load_script("prepare_model").prepare(str(directory), tmp_path / "model")
    words = " ".join(f"w{i * i % 97}" for i in range(WORDS))
    (tmp_path / "source.txt").write_text(words)
    record = tmp_path / "text.json"
    load_script("prepare_text").prepare(str(tmp_path / "source.txt"), tmp_path / "text.txt", record)
    ids = tmp_path / "tokens.npy"
    tokenizer_script = load_script("tokenize_text")
    np.save(ids, tokenizer_script.tokenize(tmp_path / "model", tmp_path / "text.txt"))
    return [
        *("--model", tmp_path / "model", "--token-ids", ids, "--text-record", record),
        *("--key", "cpu", "--threads", 1, "--window-tokens", 64, "--stride-tokens", 32, "--tokens", 200),
        *("--out-record", tmp_path / "out" / "p.json", "--out-samples", tmp_path / "out" / "p.parquet"),
    ]


def test_record_and_samples(inputs: list[object], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "perplexity_eval.py"), *map(str, inputs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--precisions", "int8_channel"], env=environment, capture_output=True, text=True, check=False
    )
    # No progress bar, for stderr is not a terminal.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    record = results.read(tmp_path / "out" / "p.json", PerplexityRecord)
    assert [found.precision for found in record.precisions] == ["fp32", "bf16", "int8_channel"]
    assert (record.tokens, record.windows, record.hardware) == (200, 6, "cpu")
    samples = pl.read_parquet(tmp_path / "out" / "p.parquet")
    assert dict(samples.schema) == {
        "precision": pl.String,
        "window": pl.Int64,
        "position": pl.Int64,
        "token": pl.Int64,
        "nll_nats": pl.Float32,
    }
    assert samples.height == 3 * 199
    means = samples.group_by("precision").agg(pl.col("nll_nats").cast(pl.Float64).mean())
    for name, mean in means.iter_rows():
        (found,) = (one for one in record.precisions if one.precision == name)
        assert found.nll_nats_per_token == pytest.approx(mean)


def test_through_the_engine_and_layer_by_layer(
    script: ModuleType, inputs: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        *inputs,
        "--precisions",
        "bf16",
        "int8_gptq",
        "--every",
        2,
        "--paths",
        "chunked",
        "graphs",
        "--sensitivity-tokens",
        20,
    ]
    given += ["--served-window-tokens", 48, "--served-stride-tokens", 32, "--served-tokens", 130]
    monkeypatch.setattr(sys, "argv", ["perplexity_eval", *map(str, given)])
    script.main()
    record = results.read(tmp_path / "out" / "p.json", PerplexityRecord)
    assert record.left_out == {"int8_gptq": "torchao's GPTQ runs on CUDA only"}
    assert [(one.path, one.status, one.tokens) for one in record.served] == [
        ("chunked", "passed", 129),
        ("graphs", "skipped", 0),
    ]
    assert (record.served_window_tokens, record.served_stride_tokens) == (48, 32)
    assert record.precisions[1].divergence is not None
    assert record.precisions[1].divergence.tokens == 100
    assert record.sensitivity is not None
    assert (record.sensitivity.tokens, len(record.sensitivity.cells)) == (20, 8)


def test_bad_input_is_one_line(
    script: ModuleType, inputs: list[object], tmp_path: Path, main_error: Callable[..., str]
) -> None:
    def error(*changes: object) -> str:
        return main_error(script, *inputs, *changes)

    assert "there are fp32, bf16, fp8_e4m3_tensor" in error("--precisions", "fp4")
    assert "stride_tokens 64 does not fit" in error("--stride-tokens", 64)
    assert "more than the model's context of 256" in error("--window-tokens", 300, "--tokens", 301)
    assert "model.json: no such file" in error("--model", tmp_path / "absent")
    assert "this machine is 'cpu'" in error("--key", "h200")
    assert "tokens fill one window of 64" in error("--tokens", 60)
    assert "path 'fast' is unknown; there are paged, chunked" in error("--paths", "fast")
    small = ("--paths", "paged", "--served-stride-tokens", 32, "--served-window-tokens")
    assert "of 48: serve more tokens" in error(*small, 48, "--served-tokens", 40)
    assert "--served-window-tokens 300 is more than" in error(*small, 300)
    assert "sensitivity: precision 'fp32' quantizes" in error(
        "--sensitivity-precision", "fp32", "--sensitivity-tokens", 9
    )
    (tmp_path / "tokens.npy").write_bytes((tmp_path / "tokens.npy").read_bytes()[:200])
    assert "not a whole array of tokens" in error()
    assert "none.npy: no such file" in error("--token-ids", tmp_path / "none.npy")
    (tmp_path / "text.json").write_text('{"name": ')
    assert "not a whole TextRecord" in error()
    assert not (tmp_path / "out").exists()
