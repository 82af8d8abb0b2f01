"""What prompts are made of: random token ids, slices of a real text as token ids, or words where the server's tokenizer
is not known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serveproof.errors import UserError

Prompt = str | list[int]
Prompts = Callable[[int, np.random.Generator], Prompt]
CHARACTERS_A_TOKEN = 4
WORDS = [
    "time",
    "people",
    "way",
    "water",
    "word",
    "day",
    "part",
    "number",
    "sound",
    "place",
    "year",
    "work",
    "back",
    "thing",
    "name",
    "sentence",
    "line",
    "boy",
]


def random_ids(vocabulary: int) -> Prompts:
    """Ids from the middle eight tenths of the vocabulary, where no model has special tokens. No two prompts share a
    beginning, so a prefix cache has nothing to find."""
    low, high = vocabulary // 10, max(vocabulary * 9 // 10, vocabulary // 10 + 1)
    return lambda tokens, generator: generator.integers(low, high, tokens).tolist()


def words() -> Prompts:
    """Common English words, about a token each; how many tokens they were is in the server's usage."""
    return lambda tokens, generator: " ".join(generator.choice(WORDS, tokens).tolist())


def slices(text: Path, model: Path | None) -> Prompts:
    """Slices of a text from anywhere in it: by the model's tokenizer, or by characters where there is none."""
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text}: {error}; give a UTF-8 text file") from None
    if not content.strip():
        raise UserError(f"--text {text}: is empty")
    if model is None or not (model / "tokenizer.json").exists():

        def cut(tokens: int, generator: np.random.Generator) -> str:
            wanted = min(tokens * CHARACTERS_A_TOKEN, len(content))
            begin = int(generator.integers(0, len(content) - wanted + 1))
            return content[begin : begin + wanted]

        return cut
    from tokenizers import Tokenizer  # slow to import

    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(content, add_special_tokens=False).ids

    def cut_ids(tokens: int, generator: np.random.Generator) -> list[int]:
        if tokens > len(ids):
            raise UserError(f"--text {text}: has {len(ids)} tokens, and a prompt takes {tokens}; give a longer text")
        begin = int(generator.integers(0, len(ids) - tokens + 1))
        return [int(one) for one in ids[begin : begin + tokens]]

    return cut_ids


def choose(model: Path | None, text: Path | None, route: str) -> Prompts:
    """Real text where it is given; else random ids where the vocabulary is known; else words. Chat takes text only."""
    if text is not None:
        return slices(text, None if route == "chat" else model)
    if model is None or route == "chat":
        return words()
    try:
        shape = model / "config.json" if model.is_dir() else model
        vocabulary = int(json.loads(shape.read_text())["vocab_size"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--model {model}: has no config.json with a vocab_size; give a model directory or a config.json"
        ) from None
    return random_ids(vocabulary)
