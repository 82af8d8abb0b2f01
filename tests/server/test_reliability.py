"""What happens to everybody else when clients and processes misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serveproof.engine.engine import Engine, Output
from serveproof.engine.sequence import SamplingParams
from serveproof.server.engine_client import Answer
from serveproof.telemetry.cache_health import growth_bytes
from tests.server.conftest import TOKENS, Server, body, serving

aiohttp = pytest.importorskip("aiohttp")
# `make test-long` is the long form
LOOKS = 40  # at resident memory
OVERLOAD_S = 120.0 if "SERVEPROOF_LONG" in os.environ else 5.0


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model, tmp_path_factory.mktemp("reliable"), "--max-queue", "2000") as one:
        yield one


def test_every_tenth_of_a_thousand_hangs_up_and_the_others_are_exact(server: Server, engine: Engine) -> None:
    prompts = [[number + 1, 2 * number + 1, 5, 9, 7] for number in range(40)]
    done = engine.generate(prompts, SamplingParams(max_tokens=TOKENS, ignore_eos=True))
    expected = [one.text for one in done]

    async def one(session: Any, number: int) -> bool:
        leaves = number % 10 == 0
        asked = body(prompts[number % 40], 245 if leaves else TOKENS, stream=leaves or number % 2 == 0)
        async with session.post(f"{server.url}/v1/completions", json=asked) as answer:
            assert answer.status == 200
            if leaves:
                await answer.content.readline()
                return True  # leaving the context closes the connection
            if not asked["stream"]:
                return bool((await answer.json())["choices"][0]["text"] == expected[number % 40])
            text = ""
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
            return text == expected[number % 40]

    async def everyone() -> list[bool]:
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await asyncio.gather(*(one(session, number) for number in range(1000)))

    assert all(asyncio.run(everyone()))
    server.until(server.idle)
    # one that was whole already when its client left is no abort
    ended = {
        line.split('finished_reason="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in server.get("/metrics")[1].splitlines()
        if line.startswith("serveproof_requests_finished_total{")
    }
    assert sum(ended.values()) == 1000
    assert 50 < ended["abort"] <= 100


def test_what_arrives_while_an_answer_is_written_is_not_lost() -> None:
    async def read() -> list[int]:
        answer = Answer(["a"])
        answer.put(Output("a", (1,)))
        seen = []
        async for outputs in answer.outputs():
            seen += [output.tokens[0] for output in outputs]
            if seen == [1]:
                answer.put(Output("a", (2,)))
                answer.put(Output("a", (3,), finish_reason="length"))
        return seen

    assert asyncio.run(read()) == [1, 2, 3]


def test_a_reader_that_sleeps_holds_up_nobody(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((host, int(port)))
        data = json.dumps(body([3], 240, stream=True, logprobs=20)).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        slow.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + data)

        async def others() -> None:
            async with aiohttp.ClientSession() as session:
                for _ in range(5):
                    async with session.post(f"{server.url}/v1/completions", json=body([4])) as answer:
                        assert answer.status == 200

        asyncio.run(others())
        server.until(server.idle)  # the engine is done with it long before it is read
        got = b""
        slow.settimeout(10)
        while part := slow.recv(65536):
            got += part
    assert b"data: [DONE]" in got
    assert got.count(b"data: {") == 240


def mutants(count: int) -> Iterator[bytes]:
    """Bodies that are nearly right, and some that are nothing at all; the same ones every time."""
    choose = random.Random(0)  # noqa: S311 - the same mutants every time
    values: list[Any] = [
        None, True, -1, 0, 1.5, 10**30, -(10**30), '', 'w1', '\ud800', '\x00', [], {}, [[]], [None], ['\udfff'],
        {'a': 1}, [1, 'w1'], [[1], [2, 96]], [97], [-1], 2**63, 'x' * 5000, float('nan'), float('inf'), [[[1]]],
    ]  # fmt: skip
    names = [
        'model', 'prompt', 'max_tokens', 'temperature', 'top_p', 'top_k', 'min_p', 'n', 'stop', 'stop_token_ids',
        'seed', 'logprobs', 'echo', 'stream', 'stream_options', 'user', 'priority', 'ignore_eos', 'best_of', 'suffix',
        'repetition_penalty', 'logit_bias', 'presence_penalty', 'unknown', 'messages', 'add_special_tokens',
    ]  # fmt: skip
    for _ in range(count):
        made: Any = body([5, 6], 2)
        for _ in range(choose.choice([1, 1, 2, 4])):
            made[choose.choice(names)] = choose.choice(values)
        if choose.random() < 0.1:
            made = choose.choice([*values, [made], [[[[]]]]])
        data = json.dumps(made).encode()
        if choose.random() < 0.2:
            at = choose.randrange(len(data))
            data = data[:at] + choose.choice([b"", b"\xff", b"{", b"[" * 2000, b"\x00"]) + data[at + 1 :]
        yield data


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_thousands_of_malformed_requests_never_break_the_server(path: str, server: Server) -> None:
    statuses: Counter[int] = Counter()
    faults: list[tuple[bytes, str]] = []

    async def everyone() -> None:
        todo = mutants(4000 if path == "/v1/completions" else 3000)

        async def worker(session: Any) -> None:
            for data in todo:
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{server.url}{path}", data=data, headers=headers) as answer:
                    text = await answer.text()
                    statuses[answer.status] += 1
                    if answer.status >= 500 or (answer.status != 200 and "message" not in json.loads(text)["error"]):
                        faults.append((data, text))

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(worker(session) for _ in range(32)))

    asyncio.run(everyone())
    assert not faults, (len(faults), faults[:3])
    assert statuses[400] > 500
    assert server.metric("serveproof_engine_restarts_total") == 0
    server.until(server.idle)


def test_twice_what_it_can_carry_leaves_nobody_without_an_answer(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--max-running", "4", "--max-queue", "8") as small:
        statuses: Counter[int] = Counter()
        without_time: list[str] = []

        async def one(session: Any) -> None:
            async with session.post(f"{small.url}/v1/completions", json=body([7, 8, 9], 24)) as answer:
                await answer.read()
                statuses[answer.status] += 1
                if answer.status == 429 and int(answer.headers.get("Retry-After", 0)) < 1:
                    without_time.append(str(answer.headers))

        resident: dict[psutil.Process, list[int]] = {}

        async def load(seconds: float, carried: float) -> None:
            """Twice what it carries by now: a neighbour that left after `carried` was found must not make it less."""
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
                sent, looks, begun, before = [], 0, time.monotonic(), statuses[200]
                while (now := time.monotonic()) < begun + seconds:
                    rate = 2 * max(carried, (statuses[200] - before) / max(now - begun, 1.0))
                    if looks < (now - begun) / seconds * LOOKS:
                        looks += 1
                        for process, seen in resident.items():
                            seen.append(process.memory_info().rss)
                    while len(sent) < (now - begun) * rate:
                        sent.append(asyncio.create_task(one(session)))
                    await asyncio.sleep(0.002)
                await asyncio.gather(*sent)

        async def capacity() -> float:
            async with aiohttp.ClientSession() as session:
                for count in (8, 40):
                    begun = time.monotonic()
                    for _ in range(count // 4):
                        await asyncio.gather(*(one(session) for _ in range(4)))
            return 40 / (time.monotonic() - begun)

        carried = asyncio.run(capacity())
        asyncio.run(load(OVERLOAD_S / 3, carried))
        resident |= {psutil.Process(small.process.pid): [], psutil.Process(small.engine_pid): []}
        asyncio.run(load(OVERLOAD_S, carried))
        assert set(statuses) == {200, 429}
        assert statuses[429] > 0.1 * statuses.total()
        assert not without_time
        grown = [growth_bytes(seen) * LOOKS / seen[0] for seen in resident.values()]
        print(
            f"{statuses.total()} requests, {dict(statuses)}; resident memory grew by", *(f"{one:.2%}" for one in grown)
        )
        assert max(grown) < 0.02, list(resident.values())
        small.until(small.idle)


def test_an_engine_that_stops_stepping_is_reported(model: Path, tmp_path: Path) -> None:
    """On a server of its own: a short patience would call a busy machine's engine stopped in other tests too."""
    with serving(model, tmp_path, "--stall-s", "1.5") as impatient:
        pid = impatient.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            impatient.until(lambda: impatient.get("/health")[0] == 503)
            assert "has not stepped for" in impatient.get("/health")[1]
        finally:
            os.kill(pid, signal.SIGCONT)
        impatient.until(impatient.healthy)


@pytest.mark.timed
def test_a_killed_engine_is_an_error_within_a_second_and_serves_again(server: Server) -> None:
    restarts = server.metric("serveproof_engine_restarts_total")
    answers: list[tuple[float, bytes]] = []

    async def ask(session: Any, stream: bool) -> None:
        asked = body([3, 4], 250, stream=stream, n=20)
        async with session.post(f"{server.url}/v1/completions", json=asked) as answer:
            with contextlib.suppress(aiohttp.ClientError):
                data = await answer.read()
                answers.append((time.monotonic(), str(answer.status).encode() + data[-400:]))

    async def everyone() -> float:
        async with aiohttp.ClientSession() as session:
            asking = [asyncio.create_task(ask(session, stream)) for stream in (True, False)]
            await asyncio.to_thread(server.until, lambda: server.metric("serveproof_requests_running") > 0)
            killed = time.monotonic()
            os.kill(server.engine_pid, signal.SIGKILL)
            await asyncio.gather(*asking)
            assert server.get("/health")[0] == 503
            return killed

    killed = asyncio.run(everyone())
    assert len(answers) == 2
    assert all(at - killed < 1 for at, _ in answers)
    assert all(b"engine's process ended" in data for _, data in answers)
    assert sorted(data[:3] for _, data in answers) == [b"200", b"503"]
    server.until(server.healthy, 60)
    assert server.metric("serveproof_engine_restarts_total") == restarts + 1

    async def again() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/v1/completions", json=body([3])) as one,
        ):
            return int(one.status)

    assert asyncio.run(again()) == 200
