"""A server whose engine is two ranks: its answers are one rank's, and no rank outlives another."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serveproof.engine.engine import Output
from serveproof.engine.loader import load_model
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.server.frames import EngineEnd
from serveproof.server.ranks import Followers, heed, turns
from serveproof.server.tokens import load_tokenizer_of
from serveproof.server.wire import HEARTBEAT_S, Add
from tests.server.conftest import LONGEST, Server, body, post, serving, tiny_model

aiohttp = pytest.importorskip("aiohttp")
PROMPTS = [[3 + number, 5, 7 * number % 90, 11] for number in range(12)]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a vocabulary that two ranks can share."""
    return tiny_model(tmp_path_factory.mktemp("even") / "tiny", 96)


@pytest.fixture(scope="module")
def pair(even: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(even, tmp_path_factory.mktemp("pair"), "--tensor-parallel", "2", "--policy", "fair") as server:
        yield server


def ranks_of(server: Server) -> list[psutil.Process]:
    """Rank 0's process, and those that it started."""
    first = psutil.Process(server.engine_pid)
    return [first, *(one for one in first.children() if "engine_process" in " ".join(one.cmdline()))]


async def texts(server: Server, bodies: list[dict[str, Any]]) -> list[str]:
    """The answers to all at once; of a stream, only that it began: then it is hung up on."""

    async def one(session: Any, asked: dict[str, Any]) -> str:
        async with session.post(f"{server.url}/v1/completions", json=asked) as answer:
            assert answer.status == 200, await answer.text()
            if asked.get("stream"):
                await answer.content.readline()
                return ""
            return str((await answer.json())["choices"][0]["text"])

    async with aiohttp.ClientSession() as session:
        return list(await asyncio.gather(*(one(session, asked) for asked in bodies)))


def test_two_ranks_answer_as_one(pair: Server, even: Path) -> None:
    """In any mix: greedy and drawn with a seed, beside others without one, some of which are hung up on."""
    alone = start_with(load_model(even), Settings(dtype="fp32", max_model_len=LONGEST), load_tokenizer_of(even, 96))
    drawn = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    expected = [one.text for one in alone.generate(PROMPTS, SamplingParams(max_tokens=40, ignore_eos=True))]
    params = SamplingParams(max_tokens=40, ignore_eos=True, **drawn)
    expected += [one.text for one in alone.generate(PROMPTS, params)]
    noise = [body([9, number], 200, stream=number % 2 == 0, temperature=1.0, user="noise") for number in range(20)]
    bodies = [body(one, 40) for one in PROMPTS] + [body(one, 40, **drawn) for one in PROMPTS]
    assert len(ranks_of(pair)) == 2
    assert asyncio.run(texts(pair, bodies + noise))[: len(bodies)] == expected
    stopped = post(f"{pair.url}/v1/completions", body(PROMPTS[0], 40, stop=[expected[0].split()[2]]))[1]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    pair.until(pair.idle)
    time.sleep(2 * HEARTBEAT_S)  # rank 0 beats while nothing is to be done, and tells nobody
    assert post(f"{pair.url}/v1/completions", body(PROMPTS[0], 40))[1]["choices"][0]["text"] == expected[0]
    refused = post(f"{pair.url}/v1/completions", body([1] * LONGEST, 40))
    assert refused[0] == 400
    pair.until(pair.idle)
    assert pair.metric("serveproof_engine_restarts_total") == 0


@pytest.mark.timed
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_an_error_within_a_second_and_serves_again(pair: Server, rank: int) -> None:
    before = pair.metric("serveproof_engine_restarts_total")
    ranks = ranks_of(pair)

    async def ask(session: Any) -> tuple[int, float]:
        async with session.post(f"{pair.url}/v1/completions", json=body([3, 4], 250, n=20)) as answer:
            await answer.read()
            return answer.status, time.monotonic()

    async def everyone() -> tuple[int, float]:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(ask(session))
            await asyncio.to_thread(pair.until, lambda: pair.metric("serveproof_requests_running") > 0)
            killed = time.monotonic()
            ranks[rank].send_signal(signal.SIGKILL)
            status, ended = await asking
            return status, ended - killed

    status, seconds = asyncio.run(everyone())
    assert status == 503
    assert seconds < 1
    gone, alive = psutil.wait_procs(ranks, 5)
    assert (len(gone), alive) == (2, [])
    pair.until(pair.healthy, 60)
    assert pair.metric("serveproof_engine_restarts_total") == before + 1
    assert post(f"{pair.url}/v1/completions", body([3], 4))[0] == 200
    assert len(ranks_of(pair)) == 2


def test_ranks_end_with_their_server(even: Path, tmp_path: Path) -> None:
    with serving(even, tmp_path, "--tensor-parallel", "2") as server:
        ranks = ranks_of(server)
    assert len(ranks) == 2
    assert psutil.wait_procs(ranks, 5)[1] == []


def test_ranks_that_no_longer_agree_end() -> None:
    """Rank 1's step brought another token than rank 0's."""
    own, theirs = socket.socketpair()
    followers = Followers([EngineEnd(own)])
    engine = type("Engine", (), {"clock": lambda self: 7.0, "steps": 3})()
    add = Add("a", [1, 2], SamplingParams(temperature=1.0))
    told = turns(EngineEnd(theirs))
    [taken] = followers.tell(engine, [add])
    assert taken.params.seed is not None  # type: ignore[union-attr]
    assert heed(next(told), engine, []) == [taken]
    assert engine.clock() == 7.0
    followers.brought = [Output("a", (5,))]
    followers.tell(engine, [])
    assert heed(next(told), engine, [Output("a", (5,))]) == []
    followers.tell(engine, [])
    with pytest.raises(RuntimeError, match="after step 3"):
        heed(next(told), engine, [Output("a", (6,))])
    own.close()


@pytest.mark.parametrize(
    ("vocabulary", "ranks", "said"),
    [
        (97, 2, "vocab_size 97 does not divide by 2 ranks"),
        (96, 0, "--tensor-parallel is 0; it must be 1 or more"),
        (96, 4, "num_attention_heads 6 does not divide by 4 ranks"),
    ],
)
def test_what_ranks_can_not_share_is_one_line(tmp_path: Path, vocabulary: int, ranks: int, said: str) -> None:
    model = tiny_model(tmp_path / "tiny", vocabulary)
    command = [sys.executable, "-m", "serveproof.server", "--model", str(model), "--port", "0", "--dtype", "fp32"]
    command += ["--device", "cpu"]  # where no GPU can be missing
    done = subprocess.run(
        [*command, "--tensor-parallel", str(ranks)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("serveproof:")]
    assert said in line
