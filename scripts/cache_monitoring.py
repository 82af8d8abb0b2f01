"""Whether memory comes back, in an engine of its own or in a server that runs.

Alone: runs an engine for several equal rounds and looks at the allocator and the KV cache between them. With --url:
watches the server's /metrics. Needs --model (a model directory, llama-1b, llama-8b or a config.json), or a server that
answers (its API key is read from SERVEPROOF_API_KEY). Prints a table; exit code 1 when something leaks. Writes no file.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from pathlib import Path

import psutil
import torch
from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensor

from serveproof import script
from serveproof.engine.engine import Engine
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.loader import load_or_draw
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.model_names import find_model
from serveproof.telemetry import cache_health, scrape
from serveproof.telemetry.cache_health import Round

MIB = 2**20


def live_bytes() -> int:
    """Bytes of the storages of all tensors that Python can reach; each storage once.

    Tensors without memory don't count: meta tensors, and those that a compiler traced with and keeps.
    """
    gc.collect()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if issubclass(type(one), torch.Tensor) and not isinstance(one, FakeTensor) and not one.is_meta
    }
    return sum(storages.values())


def round_of(engine: Engine, number: int, device: str) -> Round:
    """What is taken now, everything idle."""
    largest_free = 0
    if device == "cuda":
        torch.cuda.synchronize()
        segments = torch.cuda.memory_snapshot()
        free = [block["size"] for one in segments for block in one["blocks"] if block["state"] == "inactive"]
        largest_free = max(free, default=0)
    return Round(
        number=number,
        live_bytes=live_bytes(),
        allocated_bytes=torch.cuda.memory_allocated() if device == "cuda" else 0,
        reserved_bytes=torch.cuda.memory_reserved() if device == "cuda" else 0,
        largest_free_bytes=largest_free,
        resident_bytes=psutil.Process().memory_info().rss,
        blocks_out=engine.snapshot().used_blocks,
        references=sum(engine.blocks.references),
    )


def requests_of_round(engine: Engine, arguments: argparse.Namespace, vocabulary: int, seed: int) -> None:
    """Requests of several lengths, every third one aborted midway: the way blocks are lost most easily."""
    draw = random.Random(seed)  # noqa: S311 - traffic, no secret
    for number in range(arguments.requests):
        prompt = [draw.randrange(vocabulary) for _ in range(draw.randint(1, arguments.prompt))]
        engine.add(f"{seed}-{number}", prompt, SamplingParams(max_tokens=arguments.output, ignore_eos=True))
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
        if steps == 2:
            for number in range(0, arguments.requests, 3):
                engine.abort(f"{seed}-{number}")


def table(rounds: list[Round]) -> str:
    """One line a round."""
    rows = [
        [one.number, one.live_bytes / MIB, one.allocated_bytes / MIB, one.reserved_bytes / MIB,
         100 * one.fragmentation, one.largest_free_bytes / MIB, one.resident_bytes / MIB, one.blocks_out,
         one.references]
        for one in rounds
    ]  # fmt: skip
    heads = ["round", "live tensors MiB", "allocated MiB", "reserved MiB", "fragmentation %", "largest free MiB",
             "resident MiB", "blocks out", "references"]  # fmt: skip
    return tabulate(rows, heads, floatfmt=".1f")


def alone(arguments: argparse.Namespace) -> list[str]:
    """Rounds through an engine of our own."""
    if arguments.rounds < 4:
        raise UserError(f"--rounds {arguments.rounds}: at least 4, for growth is judged over all but the first")
    device = device_of(arguments.key)
    settings = Settings(
        dtype=arguments.dtype, device=device, max_running=8, token_budget=256, graphs=False,
        max_model_len=arguments.prompt + arguments.output,
    )  # fmt: skip
    model = load_or_draw(find_model(arguments.model), 0, DTYPES[settings.dtype], device)
    engine = start_with(model, settings)
    rounds = []
    for number in script.progress(range(arguments.rounds), "rounds"):
        requests_of_round(engine, arguments, model.config.vocab_size, seed=number)
        rounds.append(round_of(engine, number, device))
    print(table(rounds))
    return cache_health.faults(rounds, arguments.tolerated_kib * 1024)


def beside(arguments: argparse.Namespace) -> list[str]:
    """A server's /metrics, every interval, for the duration."""
    samples: list[tuple[float, scrape.Sample]] = []
    started = time.monotonic()
    while (now_s := time.monotonic() - started) <= arguments.duration:
        samples.append((now_s, scrape.fetch(arguments.url, os.environ.get("SERVEPROOF_API_KEY", ""))))
        time.sleep(arguments.interval)
    if all(one.cache_usage is None for _, one in samples):
        raise UserError(f"{arguments.url}/metrics has none of {', '.join(scrape.NAMES['cache_usage'])}")
    rows = [[f"{at_s:.1f}", one.running, one.waiting, one.cache_usage] for at_s, one in samples]
    print(tabulate(rows, ["s", "running", "waiting", "cache usage"]))
    return cache_health.server_faults(samples, arguments.settle)


def work(arguments: argparse.Namespace) -> None:
    if bool(arguments.url) == bool(arguments.model):
        raise UserError("give --model for a check of its own, or --url of a running server; one of the two")
    found = beside(arguments) if arguments.url else alone(arguments)
    for line in found:
        script.say(arguments.log, f"leak: {line}")
    if found:
        raise SystemExit(1)
    print("no leak was found")


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--key", default="cpu", help="hardware key: cpu, h200, ...")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="fp32", choices=COMPUTE)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16, help="a round")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the longest prompt")
    parser.add_argument("--output", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--tolerated-kib", type=float, default=1.0, help="growth a round that is let pass")
    parser.add_argument("--url", help="base URL of a running server, instead of --model")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds to watch --url")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between looks at --url")
    parser.add_argument("--settle", type=float, default=5.0, help="idle seconds after which the cache must be empty")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
