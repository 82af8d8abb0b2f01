"""Measure what precisions and ways of serving cost in accuracy: perplexity, KL divergence and top-1 agreement.

Needs the directory that prepare_model wrote (of any Hugging Face directory) and the tokens that tokenize_text wrote (of
any text). Scores the first --tokens tokens by strided sliding windows, in fp32 and bf16 (the references, always) and in
every precision named; then the first --served-tokens through the engine by every path named, with its greedy answers to
fixed prompts; then quantizes one kind of projection of one layer at a time. What follows the scored tokens calibrates.
Writes a JSON record (with paired intervals) and a Parquet file with the NLL of every token of the precisions. No
beginning-of-sequence token is added.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from serveproof import results, script
from serveproof.accuracy_records import PerplexityRecord, ServedPath
from serveproof.bench.greedy import make_prompts
from serveproof.bench.perplexity import KNOWN, Samples, as_reference, evaluate, evaluated_precisions, left_out, score
from serveproof.bench.sensitivity import KINDS, quantizing, sensitivity
from serveproof.bench.served import PATHS, Problem, check_paths, serve_all
from serveproof.bench.windows import Integers, window_plan
from serveproof.engine.calibration import CALIBRATED
from serveproof.engine.config import read_config
from serveproof.engine.loader import load_model
from serveproof.engine.quantization import PRECISIONS
from serveproof.errors import UserError
from serveproof.hardware.key import device_of, require
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.tables import TOKENS_SCHEMA


def read_tokens(path: Path) -> Integers:
    """The ids that tokenize_text wrote."""
    try:
        ids: Integers = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run scripts/tokenize_text.py") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a whole array of tokens ({error}); delete it and run again") from None
    return ids


def samples_table(samples: Samples) -> pl.DataFrame:
    """One row a precision and scored token."""
    columns = {"window": samples.window, "position": samples.position, "token": samples.token}
    tables = [
        pl.DataFrame({**columns, "nll_nats": nll}).select(pl.lit(name).alias("precision"), pl.all())
        for name, nll in samples.nll_nats.items()
    ]
    return pl.concat(tables).cast(TOKENS_SCHEMA)  # type: ignore[arg-type]


def calibrating(ids: Integers, arguments: argparse.Namespace) -> tuple[Integers, Integers | None]:
    """(tokens to score, those after them as [B, window] for the calibrated precisions). UserError if too few."""
    tokens = ids[: arguments.tokens]
    if not any(name in CALIBRATED for name in arguments.precisions):
        return tokens, None
    length = min(arguments.window_tokens, arguments.calibration_tokens)
    tokens = tokens[: max(0, len(ids) - length)]
    after = ids[len(tokens) :][: arguments.calibration_tokens // length * length]
    return tokens, after[: len(after) // length * length].reshape(-1, length)


def problem_of(arguments: argparse.Namespace, ids: Integers) -> Problem | None:
    """What the engine is given: the text's first windows, and prompts from its end. UserError if it is too short."""
    if not arguments.paths:
        return None
    check_paths(arguments.paths)
    tokens = ids[: arguments.served_tokens]
    plan = window_plan(len(tokens), arguments.served_window_tokens, arguments.served_stride_tokens)
    if len(plan) < 2:
        raise UserError(f"{len(tokens)} tokens fill one window of {arguments.served_window_tokens}: serve more tokens")
    return Problem(tokens, plan, make_prompts(ids))


def through_the_engine(
    arguments: argparse.Namespace, problem: Problem, device: str, on_path: Callable[[str], object]
) -> list[ServedPath]:
    """Every path's figures."""
    tokens, plan = problem.tokens, problem.plan
    _, reference = as_reference(load_model(arguments.model, torch.float32, device), tokens, plan, arguments.every)
    return serve_all(
        arguments.paths,
        arguments.model,
        problem,
        lambda plain: score(plain, tokens, plan, reference),
        reference,
        device,
        on_path,
    )


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    require(arguments.key)
    device = device_of(arguments.key)
    refused = left_out(arguments.precisions, device)
    arguments.precisions = [name for name in arguments.precisions if name not in refused]
    precisions = evaluated_precisions(arguments.precisions)
    model_record = results.read(arguments.model / "model.json", results.ModelRecord)
    text_record = results.read(arguments.text_record, results.TextRecord)
    config = read_config(arguments.model / "config.json")
    for name in ("window_tokens", "served_window_tokens")[: 2 if arguments.paths else 1]:
        if getattr(arguments, name) > config.max_position_embeddings:
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} {getattr(arguments, name)} is more than the model's context of "
                f"{config.max_position_embeddings}"
            )
    window, stride = arguments.window_tokens, arguments.stride_tokens
    ids = read_tokens(arguments.token_ids)
    tokens, calibration = calibrating(ids, arguments)
    plan = window_plan(len(tokens), window, stride)
    problem = problem_of(arguments, ids)
    if arguments.sensitivity_tokens:
        quantizing(arguments.sensitivity_precision)
    cells = config.num_hidden_layers * len(KINDS) if arguments.sensitivity_tokens else 0
    bar = script.progress(range(len(plan) * len(precisions) + len(arguments.paths) + cells), "windows, paths, cells")
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
            every=arguments.every,
            calibration=calibration,
        )
        served = through_the_engine(arguments, problem, device, lambda _: bar.update()) if problem else []
        map_ = None
        if arguments.sensitivity_tokens:
            few = ids[: min(arguments.sensitivity_tokens, config.max_position_embeddings)]
            map_ = sensitivity(arguments.model, few, arguments.sensitivity_precision, device, bar.update)
    results.write_atomically(arguments.out_samples, samples_table(samples).write_parquet)
    record = PerplexityRecord(
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
        left_out=refused,
        served=served,
        served_window_tokens=arguments.served_window_tokens,
        served_stride_tokens=arguments.served_stride_tokens,
        sensitivity=map_,
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
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=f"of {', '.join(KNOWN)}")
    parser.add_argument("--window-tokens", type=positive, default=1024)
    parser.add_argument("--stride-tokens", type=positive, default=768)
    parser.add_argument("--tokens", type=positive, default=11008)
    parser.add_argument(
        "--every", type=positive, default=4, help="of the scored tokens how many there are to one that is compared"
    )
    parser.add_argument("--calibration-tokens", type=positive, default=512)
    parser.add_argument("--paths", nargs="*", default=[], help=f"through the engine, of {', '.join(PATHS)}")
    parser.add_argument("--served-window-tokens", type=positive, default=256)
    parser.add_argument("--served-stride-tokens", type=positive, default=192)
    parser.add_argument("--served-tokens", type=positive, default=2048)
    parser.add_argument(
        "--sensitivity-precision", default="fp8_e4m3_tensor", help="of one kind of projection at a time"
    )
    parser.add_argument("--sensitivity-tokens", type=int, default=0, help="0 leaves the map out")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--out-record", required=True, type=Path, help="JSON record to write")
    parser.add_argument("--out-samples", required=True, type=Path, help="Parquet file to write")
    script.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
