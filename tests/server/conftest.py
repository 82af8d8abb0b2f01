"""A tiny model with words for tokens, and servers of it: real processes, real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from serveproof.engine.engine import Engine
from serveproof.engine.loader import load_model
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.ports import free_port
from serveproof.server.tokens import load_tokenizer_of

pytest.importorskip("fastapi")
VOCABULARY, LONGEST = 97, 256
TOKENS = 8
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ 'w1 ' if message.role == 'user' else 'w2 ' }}{{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}w3{% endif %}"
)


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """(status, body)."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def until(self, true: Callable[[], bool], limit_s: float = 20) -> float:
        """Seconds until it is so."""
        begun = time.monotonic()
        while not true():
            assert time.monotonic() - begun < limit_s, self.log.read_text()
            time.sleep(0.02)
        return time.monotonic() - begun

    @property
    def engine_pid(self) -> int:
        """Of the engine's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        named = [int(pid) for pid in children if b"engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return named[0]

    def idle(self) -> bool:
        """Whether no request is there, and no block of the cache is held."""
        return (
            self.metric("serveproof_requests_running") == self.metric("serveproof_requests_waiting") == 0
            and self.metric("serveproof_kv_cache_usage_ratio") == 0
        )

    def healthy(self) -> bool:
        """Whether /health says 200."""
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False


@contextmanager
def serving(model: Path, folder: Path, *options: str, **variables: str) -> Iterator[Server]:
    """A server of `model`, healthy; it must end with 0 on SIGTERM."""
    port = free_port()
    log = folder / "server.log"
    command = [sys.executable, "-m", "serveproof.server", "--model", str(model), "--port", str(port), "--dtype", "fp32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    with log.open("wb") as sink:
        process = subprocess.Popen([*command, *options], stdout=sink, stderr=sink, env=environment)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        server.until(lambda: process.poll() is not None or server.healthy(), 60)
        assert process.poll() is None, log.read_text()
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def tiny_model(folder: Path, vocabulary: int) -> Path:
    """A random Llama with a chat template; its tokens are the words w0, w1, ..., the last ends an answer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=96, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=LONGEST, tie_word_embeddings=True, initializer_range=0.2,
        eos_token_id=vocabulary - 1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", VOCABULARY)


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    """The same model without a server: what its answers are held against."""
    settings = Settings(dtype="fp32", max_running=8, max_model_len=LONGEST)
    return start_with(load_model(model), settings, load_tokenizer_of(model, VOCABULARY))


@pytest.fixture(scope="session")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with serving(model, tmp_path_factory.mktemp("served")) as server:
        yield server


def body(prompt: list[int], tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    """What is posted for a greedy answer of just so many tokens."""
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """(status, JSON) of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
