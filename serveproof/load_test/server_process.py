"""The server under test: started by one command, waited for, ended. Which command, and what a variant adds, stands here
and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from serveproof.errors import UserError
from serveproof.load_records import Slo
from serveproof.ports import free_port

SERVER_COMMAND: tuple[str, ...] = (sys.executable, "-m", "serveproof.server")
# A name that a config can choose -> the options that make a server so. {waiting} is how many may wait at most.
VARIANTS: dict[str, tuple[str, ...]] = {
    "first_come": ("--policy", "first_come"),
    "fair": ("--policy", "fair"),
    "priority": ("--policy", "priority"),
    "bounded": ("--max-queue", "{waiting}"),
    "chunked": (),
    "whole": ("--no-chunked",),
}
START_LIMIT_S, STOP_LIMIT_S = 300.0, 30.0
LINES_SHOWN = 15


def options_of(variant: str, slo: Slo, capacity_per_s: float | None) -> tuple[str, ...]:
    """A variant's options, or UserError listing what there is.

    A bounded queue is as long as what the server completes in half of the SLO's TTFT: who is let in is still in time.
    """
    if variant not in VARIANTS:
        raise UserError(f"server '{variant}': there are {', '.join(VARIANTS)}")
    options = VARIANTS[variant]
    if "{waiting}" in options and capacity_per_s is None:
        raise UserError(f"server '{variant}': its queue is sized by the capacity; give --capacity or --rate")
    waiting = max(1, int((capacity_per_s or 0.0) * slo.ttft_ms / 1e3 / 2))
    return tuple(one.format(waiting=waiting) for one in options)


def healthy(base_url: str) -> bool:
    """Whether /health answers 200."""
    try:
        with urllib.request.urlopen(f"{base_url}/health", timeout=2) as answer:  # noqa: S310 - http, by the caller
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def started(
    model: Path, options: tuple[str, ...], beside: Path | None = None, threads: int | None = None
) -> Iterator[tuple[str, str]]:
    """Start the server, wait until it is healthy, yield (base URL, its command as a line), end it.

    beside: the caller's log, beside which the server's own is kept; without it that ends with the server.

    RuntimeError with the end of its log when it dies or is not healthy in START_LIMIT_S. SIGTERM ends it; one that does
    not end by STOP_LIMIT_S is killed, and that is an error too.
    """
    port = free_port()
    told = [*SERVER_COMMAND[1:], "--model", str(model), *options]
    command = [SERVER_COMMAND[0], *told, "--host", "127.0.0.1", "--port", str(port)]
    # threads that spin while they wait would take the cores that the client and the HTTP layer need
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="serveproof-server-")))
        log = beside.with_suffix(".server.log") if beside else folder / "server.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        sink = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        base_url, begun = f"http://127.0.0.1:{port}", time.monotonic()
        try:
            while not healthy(base_url):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with code {process.returncode}:\n{_end_of(log)}")
                if time.monotonic() - begun > START_LIMIT_S:
                    raise RuntimeError(f"the server was not healthy after {START_LIMIT_S:g} s:\n{_end_of(log)}")
                time.sleep(0.1)
            yield base_url, " ".join(["python", *told])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise RuntimeError(f"the server did not end {STOP_LIMIT_S:g} s after SIGTERM") from None


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LINES_SHOWN:])


def model_name(base_url: str, api_key: str = "") -> str:
    """The first model that /v1/models lists. UserError where there is no such server."""

    if not base_url.startswith(("http://", "https://")):
        raise UserError(f"--base-url {base_url}: not an http:// or https:// address")
    asked = urllib.request.Request(f"{base_url}/v1/models")  # noqa: S310 - checked above
    if api_key:
        asked.add_header("Authorization", f"Bearer {api_key}")
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - checked above
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{base_url}/v1/models: {error}; is that a server of OpenAI's routes?") from None
