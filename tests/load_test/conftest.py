"""A null server in a process of its own, and requests to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from serveproof.load_test import wire
from serveproof.load_test.null_server import Behaviour
from serveproof.load_test.outcomes import ClientJob, Planned

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def null_server() -> Iterator[Callable[..., str]]:
    """Start a null server that behaves so; returns its base URL."""
    running = []

    def start(**behaviour: object) -> str:
        settings = msgspec.json.encode(Behaviour(**behaviour)).decode()  # type: ignore[arg-type]
        command = [sys.executable, "-m", "serveproof.load_test.null_server", "--behaviour", settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        running.append(process)
        assert process.stdout
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


@pytest.fixture
def job() -> Callable[..., ClientJob]:
    """A job of `count` requests at a constant rate; number n has the seed n, which the null server's faults go by."""

    def make(base: str, count: int, rate_per_s: float, tokens: int = 8, **changes: object) -> ClientJob:
        route = str(changes.pop("route", "completions"))
        tenants = changes.pop("tenants", ["a"])
        timeout_s = float(changes.pop("timeout_s", 10.0))  # type: ignore[arg-type]
        requests = []
        for number in range(1, count + 1):
            tenant = tenants[number % len(tenants)]  # type: ignore[index,arg-type]
            body = wire.body(route, "null", [1] * 10, tokens, tenant=tenant, seed=number)
            requests.append(Planned(number, (number - 1) / rate_per_s, body, tenant, "", 10, tokens))
        return ClientJob(base + wire.PATHS[route], requests, timeout_s, **changes)  # type: ignore[arg-type]

    return make
