"""python -m serveproof.server --model DIR: serves it over OpenAI's API until SIGTERM, which lets running requests end.

On loopback unless --host says otherwise. SERVEPROOF_API_KEY, or --api-key, is asked of every route but /health.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from serveproof import script
from serveproof.engine.config import read_config
from serveproof.engine.policies import POLICIES
from serveproof.engine.settings import CACHES, COMPUTE, WEIGHTS, Settings
from serveproof.errors import UserError
from serveproof.hardware.key import detect, device_of
from serveproof.model_names import find_model, model_name
from serveproof.server.app import make_app, observe
from serveproof.server.chat import ChatTemplate, load_template
from serveproof.server.engine_client import EngineClient
from serveproof.server.gate import Gate
from serveproof.server.guard import Guard
from serveproof.server.http_protocol import BoundedHead
from serveproof.server.prepare import Model
from serveproof.server.tokens import load_tokenizer_of
from serveproof.server.wire import Job
from serveproof.telemetry.engine_metrics import EngineMetrics

SHUT_S = 2  # for the last bytes, after the drain


class Server(uvicorn.Server):
    """uvicorn's, which after a SIGTERM would end with that signal; a drained server ends with 0.

    At the first signal `gate` is closed, and what still runs after drain_s is ended with an error that says so.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, client: EngineClient, drain_s: int) -> None:
        super().__init__(config)
        self.gate, self.client, self.drain_s = gate, client, drain_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM begin the drain; a second one ends it."""
        loop = asyncio.get_running_loop()
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, self.handle_exit, one, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Told to end."""
        if not self.gate.closed:
            self.gate.closed = "the server is shutting down"
            said = f"the server has shut down: this request was not done {self.drain_s} s after (--drain-s)"
            asyncio.get_running_loop().call_later(self.drain_s, self.client.end_all, said)
        super().handle_exit(sig, frame)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = script.parser(__doc__ or "")
    made.add_argument("--model", required=True, help="a model directory, llama-1b, llama-8b or a config.json")
    made.add_argument("--served-model-name", default="", help="the id in /v1/models; the directory's name by default")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=8000)
    made.add_argument(
        "--api-key", default=os.environ.get("SERVEPROOF_API_KEY", ""), help="SERVEPROOF_API_KEY by default"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--threads", type=int, help="of torch; OMP_NUM_THREADS or all by default")
    made.add_argument("--tensor-parallel", type=int, default=1, help="ranks that share the model, on a GPU each")
    made.add_argument("--dtype", choices=COMPUTE, default="bf16")
    made.add_argument("--weights", choices=WEIGHTS, help="8 or 4 bits for the linear layers")
    made.add_argument("--cache-dtype", choices=CACHES)
    made.add_argument("--max-running", type=int, default=64, help="requests in the running batch")
    made.add_argument("--max-queue", type=int, default=256, help="requests that may wait; more get 429")
    made.add_argument("--token-budget", type=int, default=1024, help="tokens a step")
    made.add_argument("--max-model-len", type=int, help="tokens of a prompt with its answer; the model's by default")
    made.add_argument(
        "--blocks", type=int, help="cache blocks; by default what could be asked for and fits (4 GiB on a CPU)"
    )
    made.add_argument("--policy", choices=tuple(POLICIES), default="first_come")
    made.add_argument("--no-chunked", action="store_true", help="a prompt is one piece, before other work")
    made.add_argument("--no-prefix-caching", action="store_true")
    made.add_argument("--drafts", type=int, default=0, help="n-gram drafts a step; greedy requests only")
    made.add_argument("--compile", action="store_true", help="torch.compile of the block that all layers share")
    made.add_argument("--max-body-bytes", type=int, default=8 * 2**20)
    made.add_argument("--drain-s", type=int, default=30, help="how long running requests may take after SIGTERM")
    made.add_argument(
        "--stall-s", type=float, default=30, help="/health turns 503 when the engine says nothing for so long"
    )
    made.add_argument("--http-log", action="store_true", help="a line a request on stderr")
    return made


def settings_of(given: argparse.Namespace) -> Settings:
    """The engine's settings. UserError for those that can't be."""
    device = device_of(detect()) if given.device == "auto" else given.device
    return Settings(
        dtype=given.dtype,
        weights=given.weights,
        cache_dtype=given.cache_dtype,
        device=device,
        blocks=given.blocks,
        max_running=given.max_running,
        token_budget=given.token_budget,
        max_model_len=given.max_model_len,
        chunked=not given.no_chunked,
        drafts=given.drafts,
        policy=given.policy,
        prefix_caching=not given.no_prefix_caching,
        compile_block=given.compile,
    )


def model_of(path: Path, name: str) -> Model:
    """What the API holds requests against: tokenizer, template, vocabulary."""
    config = read_config(path / "config.json" if path.is_dir() else path)
    tokenizer = load_tokenizer_of(path, config.vocab_size)
    template = load_template(path) if path.is_dir() else ChatTemplate(None, {})
    return Model(name or model_name(path), str(path), tokenizer, template, config.vocab_size, int(time.time()))


def work(given: argparse.Namespace) -> None:
    if min(given.max_queue, given.drain_s) < 0 or given.max_body_bytes < 1:
        raise UserError("--max-queue and --drain-s must be 0 or more and --max-body-bytes 1 or more")
    if given.tensor_parallel < 1:
        raise UserError(f"--tensor-parallel is {given.tensor_parallel}; it must be 1 or more")
    path = find_model(given.model)
    model = model_of(path, given.served_model_name)
    threads = given.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    metrics = EngineMetrics(model.name)
    job = Job(given.model, settings_of(given), threads, given.tensor_parallel)
    client = EngineClient(job, given.stall_s, lambda batch: observe(metrics, batch))
    gate = Gate(given.max_running + given.max_queue, fair=given.policy == "fair")
    app = make_app(model, client, gate, metrics)
    guard = Guard(
        app,
        given.api_key,
        given.max_body_bytes,
        lambda status: metrics.add("serveproof_requests_refused", 1, str(status)),
    )
    config = uvicorn.Config(
        guard,
        given.host,
        given.port,
        http=BoundedHead,
        log_level="info",
        access_log=given.http_log,
        timeout_graceful_shutdown=given.drain_s + SHUT_S,
        timeout_keep_alive=30,
        backlog=4096,
        lifespan="on",
    )
    server = Server(config, gate, client, given.drain_s)
    client.when_failed = lambda: setattr(server, "should_exit", True)
    server.run()
    if client.failed:
        raise UserError(client.failed)


def main() -> None:
    script.run(work, options().parse_args())


if __name__ == "__main__":
    main()
