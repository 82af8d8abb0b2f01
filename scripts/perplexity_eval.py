"""Measure a model's perplexity on a text in several weight precisions, and what each precision changes.

Needs the directory that prepare_model wrote and the tokens that tokenize_text wrote. Scores the first --tokens
tokens by strided sliding windows, in fp32 and bf16 (the references, always) and in every precision named. Writes a
JSON record (perplexity, paired differences with intervals) and a Parquet file with the NLL of every token. No
beginning-of-sequence token is added. The defaults (14 windows of 1024 tokens, 768 of each scored) take about a minute
for five precisions on 2 CPU cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from serveproof import results, script
from serveproof.bench.perplexity import Integers, Samples, evaluate, evaluated_precisions, window_plan
from serveproof.engine.config import read_config
from serveproof.engine.quantization import PRECISIONS
from serveproof.errors import UserError
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.tables import TOKENS_SCHEMA


def read_tokens(path: Path, tokens: int) -> Integers:
    """The first `tokens` ids that tokenize_text wrote, or all if there are fewer."""
    try:
        ids: Integers = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run scripts/tokenize_text.py") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a whole array of tokens ({error}); delete it and run again") from None
    return ids[:tokens]


def samples_table(samples: Samples) -> pl.DataFrame:
    """One row a precision and scored token."""
    columns = {"window": samples.window, "position": samples.position, "token": samples.token}
    tables = [
        pl.DataFrame({**columns, "nll_nats": nll}).select(pl.lit(name).alias("precision"), pl.all())
        for name, nll in samples.nll_nats.items()
    ]
    return pl.concat(tables).cast(TOKENS_SCHEMA)  # type: ignore[arg-type]


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    require(arguments.key)
    device = device_of(arguments.key)
    precisions = evaluated_precisions(arguments.precisions)
    model_record = results.read(arguments.model / "model.json", results.ModelRecord)
    text_record = results.read(arguments.text_record, results.TextRecord)
    context = read_config(arguments.model / "config.json").max_position_embeddings
    if arguments.window_tokens > context:
        raise UserError(f"--window-tokens {arguments.window_tokens} is more than the model's context of {context}")
    window, stride = arguments.window_tokens, arguments.stride_tokens
    tokens = read_tokens(arguments.token_ids, arguments.tokens)
    plan = window_plan(len(tokens), window, stride)
    bar = script.progress(range(len(plan) * len(precisions)), "windows")
    with lease(device), bar:
        start_torch(device, arguments.threads)
        found, samples = evaluate(
            arguments.model,
            tokens,
            arguments.precisions,
            window,
            stride,
            device=device,
            on_window=bar.update,
        )
    results.write_atomically(arguments.out_samples, samples_table(samples).write_parquet)
    record = results.PerplexityRecord(
        hardware=arguments.key,
        model=model_record,
        text=text_record,
        window_tokens=window,
        stride_tokens=stride,
        tokens=len(tokens),
        windows=len(plan),
        precisions=found,
        seconds=time.perf_counter() - start,
        provenance=collect(ROOT),
    )
    results.write(arguments.out_record, record)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", required=True, type=Path, help="directory that prepare_model wrote")
    parser.add_argument("--token-ids", required=True, type=Path, help="NumPy file that tokenize_text wrote")
    parser.add_argument("--text-record", required=True, type=Path, help="record of the text they are of")
    parser.add_argument("--key", required=True, help="the hardware key that the run is for")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--window-tokens", type=positive, default=1024)
    parser.add_argument("--stride-tokens", type=positive, default=768)
    parser.add_argument("--tokens", type=positive, default=11008)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--out-record", required=True, type=Path, help="JSON record to write")
    parser.add_argument("--out-samples", required=True, type=Path, help="Parquet file to write")
    script.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
