"""Tokens and their text for the API: the model's tokenizer, and how a single token is shown."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serveproof.engine.output import load_tokenizer


def load_tokenizer_of(path: Path, vocabulary: int) -> Tokenizer:
    """A directory's tokenizer; for a shape without one, with random weights, words w0, w1, ... of its vocabulary."""
    found = load_tokenizer(path) if path.is_dir() else None
    if found is not None:
        return found
    made = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Sequence([decoders.Replace("w", " w")])
    return made


def shown(tokenizer: Tokenizer, token: int) -> str:
    """One token's text; a part of a character, which has none of its own, by its number."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return f"token_id:{token}" if "\N{REPLACEMENT CHARACTER}" in text else text
