"""Rule tokenize_text: the text's tokens, once for every precision, and whether they are enough for the windows.

A rule of its own, for Snakemake deletes a job's outputs before it runs: a text that is too short must not cost the
perplexity that was measured before. Needs the directory that prepare_model wrote and a UTF-8 text. No
beginning-of-sequence token is added. Writes the token ids as int64, a NumPy array file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serveproof import results, script
from serveproof.errors import UserError


def tokenize(model: Path, text: Path) -> npt.NDArray[np.int64]:
    """Ids of the text's tokens; UserError for a tokenizer or a text that can't be read."""
    tokenizer_file = model / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise UserError(f"{tokenizer_file}: no such file; run scripts/prepare_model.py again")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:
        # tokenizers raises bare Exception for a broken file.
        raise UserError(f"{tokenizer_file}: not a tokenizer ({error}); run scripts/prepare_model.py again") from None
    try:
        content = text.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{text}: no such file; run scripts/prepare_text.py") from None
    except UnicodeDecodeError:
        raise UserError(f"{text}: not UTF-8; convert it to UTF-8") from None
    return np.array(tokenizer.encode(content, add_special_tokens=False).ids, dtype=np.int64)


def work(arguments: argparse.Namespace) -> None:
    ids = tokenize(arguments.model, arguments.text)
    if len(ids) <= arguments.window_tokens + arguments.beside:
        name = arguments.name or arguments.text
        also = f" and {arguments.beside} to calibrate on" if arguments.beside else ""
        raise UserError(
            f"{name}: {len(ids)} tokens; more than one window of {arguments.window_tokens}{also} is needed: "
            f"give a longer text, or a smaller perplexity.window_tokens in config/config.yaml"
        )

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, ids)

    results.write_atomically(arguments.out, save)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", required=True, type=Path, help="directory that prepare_model wrote")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text")
    parser.add_argument("--name", help="what the user calls the text, for messages")
    parser.add_argument("--window-tokens", type=int, default=1024)
    parser.add_argument("--beside", type=int, default=0, help="tokens needed for calibration beside a window")
    parser.add_argument("--out", required=True, type=Path, help="NumPy file of token ids to write")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
