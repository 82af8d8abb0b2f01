"""Measure a model's perplexity on a text in several weight precisions, and what each precision changes.

Needs the directory that prepare_model wrote and the text that prepare_text wrote. Scores the text's first --tokens
tokens by strided sliding windows, in fp32 and bf16 (the references, always) and in every precision named. Writes a
JSON record (perplexity, paired differences with intervals) and a Parquet file with the NLL of every token. No
beginning-of-sequence token is added. The defaults (14 windows of 1024 tokens, 768 of each scored) take about a minute
for five precisions on 2 CPU cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from serveproof import results, script
from serveproof.bench.perplexity import Integers, Samples, evaluate, evaluated_precisions, window_plan
from serveproof.engine.config import read_config
from serveproof.engine.quantization import PRECISIONS
from serveproof.errors import UserError
from serveproof.hardware.lease import lease


def read_tokens(model: Path, text: Path, tokens: int, window_tokens: int) -> Integers:
    """Ids of the text's first `tokens` tokens, or of all if it has fewer; UserError if they don't fill a window."""
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
    ids = np.array(tokenizer.encode(content, add_special_tokens=False).ids, dtype=np.int64)
    if min(len(ids), tokens) <= window_tokens:
        raise UserError(
            f"{text}: {len(ids)} tokens, {min(len(ids), tokens)} of them chosen; more than one window of "
            f"{window_tokens} is needed: give a longer text, more tokens or a smaller window"
        )
    return ids[:tokens]


def samples_table(samples: Samples) -> pl.DataFrame:
    """One row a precision and scored token."""
    columns = {"window": samples.window, "position": samples.position, "token": samples.token}
    tables = [
        pl.DataFrame({**columns, "nll_nats": nll}).select(pl.lit(name).alias("precision"), pl.all())
        for name, nll in samples.nll_nats.items()
    ]
    return pl.concat(tables)


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; use --device cpu")
    torch.set_num_threads(arguments.threads)
    precisions = evaluated_precisions(arguments.precisions)
    model_record = results.read(arguments.model / "model.json", results.ModelRecord)
    text_record = results.read(arguments.text_record, results.TextRecord)
    context = read_config(arguments.model / "config.json").max_position_embeddings
    if arguments.window_tokens > context:
        raise UserError(f"--window-tokens {arguments.window_tokens} is more than the model's context of {context}")
    window, stride = arguments.window_tokens, arguments.stride_tokens
    tokens = read_tokens(arguments.model, arguments.text, arguments.tokens, window)
    plan = window_plan(len(tokens), window, stride)
    with tqdm(total=len(plan) * len(precisions), unit="window", disable=not sys.stderr.isatty()) as bar:
        found, samples = evaluate(
            arguments.model,
            tokens,
            arguments.precisions,
            window,
            stride,
            device=arguments.device,
            on_window=bar.update,
        )
    results.write_atomically(arguments.out_samples, samples_table(samples).write_parquet)
    record = results.PerplexityRecord(
        hardware=arguments.hardware,
        model=model_record,
        text=text_record,
        window_tokens=window,
        stride_tokens=stride,
        tokens=len(tokens),
        windows=len(plan),
        precisions=found,
        seconds=time.perf_counter() - start,
    )
    results.write(arguments.out_record, record)


def run_alone(arguments: argparse.Namespace) -> None:
    """Run with the device leased: a job that a killed run left behind may still be timing on it."""
    with lease(arguments.device):
        run(arguments)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", required=True, type=Path, help="directory that prepare_model wrote")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text")
    parser.add_argument("--text-record", required=True, type=Path, help="its record")
    parser.add_argument("--hardware", required=True, help="hardware key for the record")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--window-tokens", type=positive, default=1024)
    parser.add_argument("--stride-tokens", type=positive, default=768)
    parser.add_argument("--tokens", type=positive, default=11008)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--out-record", required=True, type=Path, help="JSON record to write")
    parser.add_argument("--out-samples", required=True, type=Path, help="Parquet file to write")
    script.run(run_alone, parser.parse_args())


if __name__ == "__main__":
    main()
