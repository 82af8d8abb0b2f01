"""Tokens of a text, and what stops them: every fault is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_in_order(script: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "text.txt").write_text("w3 w1 w4 w1 w5")
    arguments = ["--model", model, "--text", model / "text.txt", "--window-tokens", 4, "--out", model / "ids.npy"]
    monkeypatch.setattr("sys.argv", ["tokenize_text", *map(str, arguments)])
    script.main()
    ids = np.load(model / "ids.npy", allow_pickle=False)
    assert ids.tolist() == [3, 1, 4, 1, 5]
    assert ids.dtype == np.int64


def test_bad_input_is_one_line(script: ModuleType, model: Path, main_error: Callable[..., str]) -> None:
    text = model / "text.txt"

    def error(*changes: object) -> str:
        return main_error(script, "--model", model, "--text", text, "--out", model / "ids.npy", *changes)

    assert "text.txt: no such file" in error()
    text.write_text("w1 w2 w3")
    short = error("--window-tokens", 3, "--name", "~/mine.txt")
    assert "~/mine.txt: 3 tokens; more than one window of 3 is needed: give a longer text" in short
    text.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in error()
    (model / "tokenizer.json").write_text("{")
    assert "not a tokenizer" in error()
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in error()
    assert not (model / "ids.npy").exists()
