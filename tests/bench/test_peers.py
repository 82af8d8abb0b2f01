"""Peers of engine_benchmark: what they are asked, and that a peer that can't run costs the benchmark nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from serveproof.bench import peer_llama_cpp
from serveproof.bench.peer_job import PeerJob, answer
from serveproof.serving_results import PeerLoad

JOB = PeerJob("model.gguf", "cpu", "bf16", 2, [[1, 2, 3], [4, 5]], [6, 7])


class FakeServer:
    """xllamacpp's: keeps what it was told, and gives `short` tokens less."""

    def __init__(self, settings: Any, short: int = 0) -> None:
        self.settings, self.short, self.asked = settings, short, []

    def handle_completions(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        return {"usage": {"completion_tokens": asked["max_tokens"] - self.short}}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module xllamacpp; `servers` has those that were started, `short` what they will lack."""
    module: Any = ModuleType("xllamacpp")
    module.servers, module.short = [], 0

    def settings() -> SimpleNamespace:
        return SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )  # fmt: skip

    def server(given: Any) -> FakeServer:
        module.servers.append(FakeServer(given, module.short))
        return module.servers[-1]

    module.CommonParams, module.Server = settings, server
    monkeypatch.setitem(sys.modules, "xllamacpp", module)
    monkeypatch.setattr(peer_llama_cpp, "version", lambda: "1.2")
    return module


def test_llama_cpp_gets_the_same_tokens_and_a_slot_a_request(fake: Any) -> None:
    load = peer_llama_cpp.run(JOB)
    (server,) = fake.servers
    assert (server.settings.n_parallel, server.settings.n_ctx) == (2, 2 * 9)
    assert (server.settings.cpuparams.n_threads, server.settings.cpuparams_batch.n_threads) == (2, 2)
    warm, *asked = server.asked
    assert warm["max_tokens"] == 4
    assert sorted((one["prompt"], one["max_tokens"]) for one in asked) == [([1, 2, 3], 6), ([4, 5], 7)]
    assert all(one["ignore_eos"] and one["temperature"] == 0 for one in asked)
    assert load.output_tokens == 13
    assert load.seconds
    assert load.output_tokens_per_s == pytest.approx(13 / load.seconds)


def test_less_tokens_than_asked_are_no_figure(fake: Any) -> None:
    fake.short = 1
    with pytest.raises(RuntimeError, match=r"llama\.cpp gave 11 of 13 tokens"):
        peer_llama_cpp.run(JOB)


@pytest.mark.parametrize(
    ("version", "device", "told"),
    [("absent", "cpu", "xllamacpp is not installed"), ("1.2", "cuda", "wheels compute on a CPU")],
)
def test_a_peer_that_can_not_run_says_why(
    version: str, device: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_llama_cpp, "version", lambda: version)
    asked, answered = tmp_path / "job.json", tmp_path / "reply.json"
    asked.write_bytes(msgspec.json.encode(msgspec.structs.replace(JOB, device=device)))
    monkeypatch.setattr(sys, "argv", ["peer", str(asked), str(answered)])
    answer("llama.cpp", version, peer_llama_cpp.run)
    reply = msgspec.json.decode(answered.read_bytes(), type=PeerLoad)
    assert (reply.name, reply.output_tokens_per_s) == ("llama.cpp", None)
    assert told in reply.reason
