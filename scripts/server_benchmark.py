"""What HTTP costs: the same requests through the server and through the bare engine, beside each other, as ratios.

Streams of --tokens tokens, --streams at a time, at once; then one request at a time for the first token. Each way runs
--runs times in turn, each time in a process of its own with the same settings, and the medians are compared. On a busy
machine the figures are the neighbours'.

Needs --model and free cores. Prints a table. Writes no file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from tabulate import tabulate

from serveproof import script
from serveproof.engine.engine import Engine
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.start import COMPUTE, Settings
from serveproof.server.engine_process import start
from serveproof.server.wire import Job

PROMPT_TOKENS, ALONE = 32, 40


def prompts(count: int) -> list[list[int]]:
    """Token ids of a small vocabulary; no two begin alike."""
    return [[10 + (number * 7 + at * (number + 3)) % 80 for at in range(PROMPT_TOKENS)] for number in range(count)]


def bare(engine: Engine, streams: int, tokens: int) -> dict[str, float]:
    """The engine without a server: tokens/s of all streams, s to the first token of one."""
    asked = prompts(streams)
    engine.generate(asked[:2], SamplingParams(max_tokens=4, ignore_eos=True))
    engine.blocks.forget_kept()
    begun = time.perf_counter()
    engine.generate(asked, SamplingParams(max_tokens=tokens, ignore_eos=True))
    rate = streams * tokens / (time.perf_counter() - begun)
    first = []
    for number, prompt in enumerate(prompts(ALONE)):
        engine.blocks.forget_kept()
        begun = time.perf_counter()
        engine.add(str(number), prompt, SamplingParams(max_tokens=1, ignore_eos=True))
        while not any(output.tokens for output in engine.step()):
            pass
        first.append(time.perf_counter() - begun)
        while engine.busy:
            engine.step()
    return {"tokens_per_s": rate, "ttft_s": statistics.median(first)}


async def _stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    """s from sending to the first event; the rest is read too."""
    begun = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.content.readline()
        first = time.perf_counter() - begun
        async for _ in answer.content:
            pass
    return first


async def over_http(url: str, streams: int, tokens: int) -> dict[str, float]:
    """The same through a server."""

    def body(prompt: list[int], count: int) -> dict[str, Any]:
        asked = {"prompt": prompt, "max_tokens": count, "ignore_eos": True, "temperature": 0, "stream": True}
        return {"model": "benchmark", **asked}

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for prompt in prompts(2):
            await _stream(session, url, body(prompt[::-1], 4))
        begun = time.perf_counter()
        await asyncio.gather(*(_stream(session, url, body(prompt, tokens)) for prompt in prompts(streams)))
        rate = streams * tokens / (time.perf_counter() - begun)
        first = [await _stream(session, url, body(prompt, 1)) for prompt in prompts(ALONE)]
    return {"tokens_per_s": rate, "ttft_s": statistics.median(first)}


def served(arguments: argparse.Namespace) -> dict[str, float]:
    """A server's life: started, measured, ended."""
    command = [sys.executable, "-m", "serveproof.server", "--model", arguments.model, "--port", str(arguments.port)]
    command += ["--served-model-name", "benchmark", "--dtype", arguments.dtype, "--max-running", str(arguments.streams)]
    command += ["--no-prefix-caching", "--threads", str(arguments.threads), "--max-model-len", "2048"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            asyncio.run(_ready(f"http://127.0.0.1:{arguments.port}", process))
            return asyncio.run(over_http(f"http://127.0.0.1:{arguments.port}", arguments.streams, arguments.tokens))
        finally:
            process.terminate()
            process.wait()


async def _ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the server ended with code {process.returncode}")


def inner(arguments: argparse.Namespace) -> dict[str, float]:
    """The bare engine in this process."""
    settings = Settings(
        dtype=arguments.dtype,
        max_running=arguments.streams,
        token_budget=1024,
        max_model_len=2048,
        prefix_caching=False,
    )
    engine = start(Job(arguments.model, settings, arguments.threads))
    return bare(engine, arguments.streams, arguments.tokens)


def work(arguments: argparse.Namespace) -> None:
    if arguments.bare:
        print(json.dumps(inner(arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {"engine": [], "server": []}
    for run in range(arguments.runs):
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--bare"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found["engine"].append(json.loads(done.stdout.splitlines()[-1]))
        found["server"].append(served(arguments))
        print(f"run {run + 1} of {arguments.runs}", file=sys.stderr)
    middle = {
        way: {name: statistics.median(one[name] for one in runs) for name in ("tokens_per_s", "ttft_s")}
        for way, runs in found.items()
    }
    rows = [(way, f"{one['tokens_per_s']:.0f}", f"{1e3 * one['ttft_s']:.2f}") for way, one in middle.items()]
    print(tabulate(rows, headers=("", "tokens/s", "TTFT alone, ms")))
    share = middle["server"]["tokens_per_s"] / middle["engine"]["tokens_per_s"]
    added_ms = 1e3 * (middle["server"]["ttft_s"] - middle["engine"]["ttft_s"])
    print(f"throughput {share:.3f} x the engine's (goal 0.95), TTFT {added_ms:+.2f} ms (goal 1 ms)")


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", required=True, help="a model directory, or a shape")
    parser.add_argument("--dtype", default="bf16", choices=COMPUTE)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--bare", action="store_true", help="measure the engine alone, in this process, and print JSON")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
