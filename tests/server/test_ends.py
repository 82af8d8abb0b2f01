"""Clients that leave before their answer is there, and a server that is told to end while it answers."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Server, serving

CHOICES, TOKENS = 20, 250


@pytest.fixture(scope="module")
def narrow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two choices run at a time, the others wait."""
    with serving(model, tmp_path_factory.mktemp("narrow"), "--max-running", "2") as server:
        yield server


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "w1", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0} | more


def asked(server: Server, what: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(what), {"Content-Type": "application/json"})
    return connection


def ended(server: Server, reason: str) -> float:
    return server.metric(f'serveproof_requests_finished_total{{finished_reason="{reason}",model_name="tiny"}}')


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_leaves_frees_what_runs_and_what_waits(stream: bool, narrow: Server) -> None:
    """Twenty choices through two places: most still wait when their client goes, and none of those is computed."""
    before = ended(narrow, "abort")
    connection = asked(narrow, body(n=CHOICES, stream=stream))
    narrow.until(lambda: narrow.metric("serveproof_requests_running") == 2)
    assert narrow.metric("serveproof_requests_waiting") > CHOICES / 2
    connection.close()
    narrow.until(lambda: ended(narrow, "abort") > before)
    narrow.until(
        lambda: (
            narrow.metric("serveproof_requests_running") == narrow.metric("serveproof_requests_waiting") == 0
            and narrow.metric("serveproof_kv_cache_usage_ratio") == 0
        )
    )
    assert ended(narrow, "abort") - before > CHOICES / 2


@pytest.mark.parametrize(("drain_s", "choices"), [("30", 1), ("1", 100)], ids=["in time", "too late"])
def test_sigterm_lets_streams_end_within_a_limit_and_takes_no_new_work(
    drain_s: str, choices: int, model: Path, tmp_path: Path
) -> None:
    """What is done in time ends as ever; what is not is told so."""
    with serving(model, tmp_path, "--drain-s", drain_s, "--max-running", "2") as server:
        got: list[str] = []

        def read() -> None:
            got.extend(line.decode() for line in asked(server, body(stream=True, n=choices)).getresponse())

        kept = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        kept.request("GET", "/health")
        assert kept.getresponse().read()
        reader = threading.Thread(target=read)
        reader.start()
        server.until(lambda: server.metric("serveproof_generation_tokens_total") > 5)
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: refused(server))
        # a connection that was open before: told so, or closed by now
        try:
            kept.request("POST", "/v1/completions", json.dumps(body()), {"Content-Type": "application/json"})
            assert kept.getresponse().status == 503
        except (OSError, http.client.HTTPException):
            pass
        reader.join(30)
        assert server.process.wait(20) == 0, server.log.read_text()
        assert got[-2].strip() == "data: [DONE]"
        events = [json.loads(line[6:]) for line in got if line.startswith("data: {")]
        faults = [one["error"] for one in events if "error" in one]
        if choices == 1:
            assert (len(events), faults) == (TOKENS, [])
        else:
            assert [fault["code"] for fault in faults] == [503]
            assert "was not done 1 s after (--drain-s)" in faults[0]["message"]
        assert "Traceback" not in server.log.read_text()


def refused(server: Server) -> bool:
    """Whether new work is: with 503, or no connection at all."""
    try:
        answer = asked(server, body(max_tokens=1)).getresponse()
        return answer.status == 503 and "shutting down" in answer.read().decode()
    except (OSError, http.client.HTTPException):
        return True
