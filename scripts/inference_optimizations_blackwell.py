"""The ladder: one decoder, from a padded batch in eager torch to everything the engine does, one optimization a rung.

Each rung has speed, memory and perplexity against the first. It runs on any device; what a device can't do is skipped
with its reason. --model is a directory of real weights, or llama-1b, llama-8b or a config.json with random ones, whose
perplexity would say nothing and is left out.

Needs the machine alone: it waits for its lease. Prints a table. Writes a LadderRecord to --out; without it nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tabulate import tabulate

from serveproof import script
from serveproof.bench.ladder import Problem, climb
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.loader import load_or_draw
from serveproof.engine.output import load_tokenizer
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.hardware.start import start_torch
from serveproof.model_names import find_model, model_name
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import write
from serveproof.serving_results import LadderRecord

SCORED = 512
# Requests, sequences at a time, tokens that all prompts begin with, most tokens of a prompt after those, most tokens of
# an answer before a quarter more, tokens a step: a minute on two CPU cores, and enough to fill a GPU.
SIZES = {
    "cpu": {"requests": 16, "batch": 8, "shared": 64, "prompt": 128, "tokens": 64, "budget": 256},
    "cuda": {"requests": 128, "batch": 64, "shared": 256, "prompt": 768, "tokens": 256, "budget": 4096},
}


def problem_of(arguments: argparse.Namespace, path: Path, vocabulary: int) -> Problem:
    """Prompts with a common beginning, as a system prompt is, and lengths that differ; tokens of the text if given."""
    needed = SCORED + arguments.shared + arguments.requests * arguments.prompt
    tokenizer = load_tokenizer(path) if path.is_dir() and arguments.text else None
    if tokenizer is not None:
        tokens = tokenizer.encode(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
        if len(tokens) < needed:
            raise UserError(f"{arguments.text}: {len(tokens)} tokens, {needed} are needed; give a longer text")
    else:
        generator = torch.Generator().manual_seed(arguments.seed)
        tokens = torch.randint(vocabulary, (needed,), generator=generator).tolist()
    text, shared = tokens[:SCORED], tokens[SCORED : SCORED + arguments.shared]
    own = tokens[SCORED + arguments.shared :]
    prompts, outputs = [], []
    for number in range(arguments.requests):
        length = arguments.prompt // 4 + number * (3 * arguments.prompt // 4) // max(1, arguments.requests - 1)
        prompts.append(shared + own[number * arguments.prompt :][:length])
        outputs.append(
            arguments.tokens // 4 + (number * 7 % arguments.requests) * arguments.tokens // arguments.requests
        )
    return Problem(prompts, [max(1, count) for count in outputs], text)


def work(arguments: argparse.Namespace) -> None:
    device = device_of(arguments.key)
    for name, size in SIZES[device].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, size)
    start_torch(device, arguments.threads)
    path = find_model(arguments.model)
    model = load_or_draw(path, arguments.seed, DTYPES[arguments.dtype], device)
    problem = problem_of(arguments, path, model.config.vocab_size)
    longest = max(len(p) + n for p, n in zip(problem.prompts, problem.outputs, strict=True))
    settings = Settings(
        dtype=arguments.dtype,
        device=device,
        max_running=arguments.batch,
        token_budget=max(arguments.budget, 4 * arguments.batch),
        max_model_len=max(longest, SCORED),
    )
    rungs = climb(model, problem, settings, path.is_dir(), lambda text: script.say(arguments.log, text))
    record = LadderRecord(
        hardware=arguments.key,
        machine=torch.cuda.get_device_name() if device == "cuda" else "CPU",
        model=model_name(path),
        dtype=arguments.dtype,
        requests=len(problem.prompts),
        prompt_tokens=sum(map(len, problem.prompts)),
        output_tokens=sum(problem.outputs),
        rungs=rungs,
        provenance=collect(ROOT),
    )
    if arguments.out:
        write(arguments.out, record)
    rows = [
        (
            rung.name,
            rung.status if rung.status != "passed" else f"{rung.output_tokens_per_s:.0f}",
            "" if rung.speedup is None else f"{rung.speedup:.2f} x",
            "" if rung.prefill_tokens_per_s is None else f"{rung.prefill_tokens_per_s:.0f}",
            f"{rung.weight_bytes / 2**20:.0f}" if rung.weight_bytes else "",
            f"{rung.cache_bytes / 2**20:.1f}" if rung.cache_bytes else "",
            "" if rung.perplexity is None else f"{rung.perplexity:.3f}",
            rung.reason,
        )
        for rung in rungs
    ]
    heads = (
        "rung",
        "output tokens/s",
        "speedup",
        "prefill tokens/s",
        "weights MiB",
        "cache MiB",
        "perplexity",
        "reason",
    )
    print(tabulate(rows, headers=heads))


def main() -> None:
    parser = script.engine_parser(__doc__ or "", COMPUTE, "bf16")
    parser.add_argument("--text", type=Path, help="UTF-8 text for prompts and perplexity, with a model directory")
    sizes = parser.add_argument_group("sizes", "by default those of the device's kind")
    sizes.add_argument("--requests", type=int)
    sizes.add_argument("--batch", type=int, help="sequences at a time")
    sizes.add_argument("--shared", type=int, help="tokens that all prompts begin with")
    sizes.add_argument("--prompt", type=int, help="most tokens of a prompt after those")
    sizes.add_argument("--tokens", type=int, help="most tokens of an answer, a quarter more")
    sizes.add_argument("--budget", type=int, help="tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
