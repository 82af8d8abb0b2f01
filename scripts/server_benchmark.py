"""What HTTP costs: the same requests through the server and through the bare engine, in turn, as ratios.

Both ways are started with the same settings and stay up; while one works the other waits. First one request at a time,
the engine's turn and the server's one after the other: the first token's delay is the median of the pairs'
differences. Then --streams streams of --tokens tokens at once, --runs times each in turn. What slows the machine for a
while slows both.

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
from typing import IO

import numpy as np
import uvloop
from tabulate import tabulate

from serveproof import script
from serveproof.engine.engine import Engine
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.load_test.server_process import healthy
from serveproof.server.engine_process import start
from serveproof.server.wire import Job

PROMPT_TOKENS, WARM, PIECE = 32, 5, 2**16
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def prompts(count: int, seed: int) -> list[list[int]]:
    """Token ids of a small vocabulary."""
    drawn: list[list[int]] = np.random.default_rng(seed).integers(10, 90, (count, PROMPT_TOKENS)).tolist()
    return drawn


def bare(engine: Engine) -> None:
    """The engine without a server: a line of JSON {prompts, tokens} in, {first_s, whole_s} out, until the end."""
    for line in sys.stdin:
        asked = json.loads(line)
        params = SamplingParams(max_tokens=asked["tokens"], ignore_eos=True)
        begun, first_s = time.perf_counter(), 0.0
        for number, prompt in enumerate(asked["prompts"]):
            engine.add(str(number), prompt, params)
        while engine.busy:
            told = engine.step()
            if not first_s and any(output.tokens for output in told):
                first_s = time.perf_counter() - begun
        print(json.dumps({"first_s": first_s, "whole_s": time.perf_counter() - begun}), flush=True)


async def _stream(connection: Connection, prompt: list[int], tokens: int) -> float:
    """s from sending to the first event; the rest is read too, and must be whole. The connection stays open.

    By hand, for a client's time on these cores counts as the server's, and a library takes as long as the server.
    """
    reader, writer = connection
    asked = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    body = json.dumps({"model": "benchmark", **asked}).encode()
    begun = time.perf_counter()
    writer.write(HEAD % len(body) + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    answer += await reader.read(PIECE)
    first_s = time.perf_counter() - begun
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server refuses: {answer!r}")
    while not answer.endswith(b"\r\n0\r\n\r\n"):
        piece = await reader.read(PIECE)
        if not piece:
            raise RuntimeError(f"the server ended within an answer: {answer[-200:]!r}")
        answer += piece
    if answer.count(b"data: ") != tokens + 1 or b"data: [DONE]" not in answer:
        raise RuntimeError(f"the server's answer is not {tokens} events: {answer[:500]!r}")
    return first_s


async def over_http(connections: list[Connection], asked: list[list[int]], tokens: int) -> dict[str, float]:
    """The same through a server; first_s of the first request."""
    begun = time.perf_counter()
    first_s = await asyncio.gather(*(_stream(*one, tokens) for one in zip(connections, asked, strict=False)))
    return {"first_s": first_s[0], "whole_s": time.perf_counter() - begun}


def await_server(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until it can serve. RuntimeError when it ends instead."""
    while not healthy(url):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        time.sleep(0.1)


def serve_bare(arguments: argparse.Namespace) -> None:
    """The bare engine in this process."""
    settings = Settings(
        dtype=arguments.dtype,
        max_running=arguments.streams,
        token_budget=1024,
        max_model_len=2048,
        prefix_caching=False,
    )
    engine = start(Job(arguments.model, settings, arguments.threads))
    print(json.dumps({}), flush=True)
    bare(engine)


async def in_turn(arguments: argparse.Namespace, to_engine: IO[str], from_engine: IO[str]) -> dict[str, list[float]]:
    """Samples: what the first token costs alone (s, either way), and how long all streams take."""
    found: dict[str, list[float]] = {name: [] for name in ("engine_first", "server_first", "engine", "server")}

    def ask_engine(asked: list[list[int]], tokens: int) -> dict[str, float]:
        print(json.dumps({"prompts": asked, "tokens": tokens}), file=to_engine, flush=True)
        told: dict[str, float] = json.loads(from_engine.readline())
        return told

    connections = [await asyncio.open_connection("127.0.0.1", arguments.port) for _ in range(arguments.streams)]
    for number in range(WARM + arguments.alone):
        prompt = prompts(1, number)
        ways = {"engine_first": ask_engine(prompt, 1), "server_first": await over_http(connections, prompt, 1)}
        if number >= WARM:
            for name, told in ways.items():
                found[name].append(told["first_s"])
    for number in range(arguments.runs):
        asked = prompts(arguments.streams, number)
        found["engine"].append(ask_engine(asked, arguments.tokens)["whole_s"])
        found["server"].append((await over_http(connections, asked, arguments.tokens))["whole_s"])
    return found


def work(arguments: argparse.Namespace) -> None:
    if arguments.bare:
        serve_bare(arguments)
        return
    served = [sys.executable, "-m", "serveproof.server", "--model", arguments.model, "--port", str(arguments.port)]
    served += ["--served-model-name", "benchmark", "--dtype", arguments.dtype, "--max-running", str(arguments.streams)]
    served += ["--no-prefix-caching", "--threads", str(arguments.threads), "--max-model-len", "2048"]
    alone = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--bare"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(served, stdout=log, stderr=log)
        engine = subprocess.Popen(alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if engine.stdin is None or engine.stdout is None or not engine.stdout.readline():
                raise RuntimeError("the engine ended before it was asked")
            await_server(f"http://127.0.0.1:{arguments.port}", server)
            found = uvloop.run(in_turn(arguments, engine.stdin, engine.stdout))
        finally:
            for process in (server, engine):
                process.terminate()
                process.wait()
    report(found, arguments.streams * arguments.tokens)


def report(found: dict[str, list[float]], tokens: int) -> None:
    """The table, and both figures against their goals."""
    rows = [
        (way, f"{tokens / statistics.median(found[way]):.0f}", f"{1e3 * statistics.median(found[f'{way}_first']):.2f}")
        for way in ("engine", "server")
    ]
    print(tabulate(rows, headers=("", "tokens/s", "TTFT alone, ms")))
    share = statistics.median(one / other for one, other in zip(found["engine"], found["server"], strict=True))
    pairs = zip(found["server_first"], found["engine_first"], strict=True)
    added_ms = statistics.quantiles([1e3 * (one - other) for one, other in pairs])
    print(f"throughput {share:.3f} x the engine's (goal 0.95)")
    print(f"TTFT {added_ms[1]:+.2f} ms, quartiles {added_ms[0]:+.2f} and {added_ms[2]:+.2f} (goal 1 ms)")


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", required=True, help="a model directory, or a shape")
    parser.add_argument("--dtype", default="bf16", choices=COMPUTE)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5, help="of all streams, either way")
    parser.add_argument("--alone", type=int, default=100, help="requests one at a time, either way")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--bare", action="store_true", help="be the engine alone, asked on stdin")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
