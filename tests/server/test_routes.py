"""Routes beside OpenAI's, the key, limits, and templates that come with a download."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
from pathlib import Path

import pytest

from serveproof.errors import UserError
from serveproof.server.chat import ChatTemplate, load_template
from serveproof.server.errors import ApiError
from serveproof.server.gate import Gate
from serveproof.telemetry import scrape
from tests.server.conftest import Server, post, serving


def test_tokenize_counts_a_text_and_a_conversation(served: Server) -> None:
    assert post(f"{served.url}/tokenize", {"prompt": "w5 w6"}) == (
        200, {"count": 2, "max_model_len": 256, "tokens": [5, 6]},
    )  # fmt: skip
    status, found = post(f"{served.url}/tokenize", {"messages": [{"role": "user", "content": "w5"}]})
    assert (status, found["tokens"]) == (200, [1, 5, 3])
    assert post(f"{served.url}/tokenize", {})[0] == 400


def test_every_route_but_health_wants_the_key(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--max-body-bytes", "2000", SERVEPROOF_API_KEY="sesame") as server:
        body = {"model": "tiny", "prompt": "w1", "max_tokens": 2}
        for key in ("", "sesam", "sesame!", "Bearer"):
            status, answer = post(f"{server.url}/v1/completions", body, Authorization=f"Bearer {key}")
            assert status == 401
            assert answer["error"]["code"] == "invalid_api_key"
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            assert server.get(path)[0] == 401, path
        assert server.get("/health")[0] == 200
        assert scrape.fetch(server.url, "sesame").running == 0
        with pytest.raises(UserError, match="401"):
            scrape.fetch(server.url)
        assert post(f"{server.url}/v1/completions", body, Authorization="Bearer sesame")[0] == 200
        long = json.dumps(body | {"prompt": "w1 " * 1000}).encode()
        status, answer = post(f"{server.url}/v1/completions", long, Authorization="Bearer sesame")
        assert status == 413
        assert "--max-body-bytes" in answer["error"]["message"]
        # the same without a Content-Length
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        headers = {"Authorization": "Bearer sesame", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", iter([long[:1500], long[1500:]]), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        status, answer = post(f"{server.url}/v1/completions", body, **{"X-Long": "x" * 20000})
        assert status in (400, 431)
        assert endless_head(server.url).startswith(b"HTTP/1.1 400 ")
        assert server.get("/health")[0] == 200


def endless_head(url: str) -> bytes:
    """What comes back for a header that never ends, sent in pieces after a request that was whole."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        whole = http.client.HTTPResponse(connection)  # its head and its body may come apart
        whole.begin()
        assert (whole.status, json.loads(whole.read())) == (200, {"status": "ok"})
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x" * 1000)
                if select.select([connection], [], [], 0.005)[0]:
                    break
        return connection.recv(65536)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such"], "no/such"),
        (["--token-budget", "3", "--max-running", "8"], "token_budget 3 is less than a token"),
        (["--max-model-len", "9999"], "max_model_len 9999 is more than the model's 256"),
        (["--max-queue", "-1"], "--max-queue and --drain-s must be 0 or more"),
    ],
)
def test_a_server_that_cannot_start_says_so_and_ends(
    options: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError) as caught, serving(model, tmp_path, *options):
        pass
    assert f"serveproof: {message}" in str(caught.value) or message in str(caught.value)
    assert "Traceback (most recent call last)" not in (tmp_path / "server.log").read_text()


def test_a_template_reaches_nothing_but_its_conversation() -> None:
    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"):
        with pytest.raises(ApiError):
            ChatTemplate(text, {}).prompt([])


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="no chat template"):
        load_template(tmp_path).prompt([])
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "{{ bos_token }}d"}]
    config = {"chat_template": named, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_template(tmp_path).prompt([]) == "<s>d"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match="chat template can't be read"):
        load_template(tmp_path)


def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate(4)
    gate.enter(3, "a")
    with pytest.raises(ApiError) as caught:
        gate.enter(2, "b")
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    with pytest.raises(ApiError) as never:
        gate.enter(5, "a")
    assert never.value.status == 400
    gate.leave(3, "a")
    gate.enter(4, "a")
    # three ended within ten seconds: one more takes a little over three
    assert gate.wait_s(1) == 4


def test_a_greedy_tenant_shuts_nobody_out_of_a_fair_queue() -> None:
    gate = Gate(8, fair=True)
    gate.enter(8, "greedy")
    gate.enter(4, "modest")
    for tenant in ("greedy", "modest"):
        with pytest.raises(ApiError, match="12 requests of at most 8"):
            gate.enter(1, tenant)
    gate.enter(2, "other")
    for number in range(2):
        gate.enter(1, f"name {number}")
    with pytest.raises(ApiError, match="16 requests"):
        gate.enter(1, "one more name")  # twice the bound is never passed, however many names there are
    gate.leave(8, "greedy")
    gate.leave(4, "modest")
    gate.enter(4, "greedy")
    assert gate.inside == {"other": 2, "name 0": 1, "name 1": 1, "greedy": 4}
