"""guidellm and aiperf: each ends well against our server, and all clients say the same of latencies that are known.

`make test-clients` installs them (2.3 GB) into an environment of their own, runs this and keeps what they said in
docs/clients.md. Without it these tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serveproof.load_test import server_process
from tests.clients import clients
from tests.clients.clients import REQUESTS, TOKENS, Found
from tests.clients.conftest import PROGRAMS, Said
from tests.load_test.conftest import null_server  # noqa: F401 - known latencies

pytestmark = pytest.mark.skipif(
    "SERVEPROOF_CLIENTS" not in os.environ, reason="guidellm and aiperf take 2.3 GB: `make test-clients` runs them"
)


def everyone(base: str, tokenizer: Path, folder: Path) -> list[Found]:
    return [
        clients.ours(base),
        clients.guidellm(PROGRAMS, base, tokenizer, folder),
        clients.aiperf(PROGRAMS, base, tokenizer, folder),
    ]


def test_all_clients_recover_known_latencies(
    null_server: Callable[..., str],  # noqa: F811 - the fixture
    default_model: Path,
    tmp_path: Path,
    said: Said,
) -> None:
    found = everyone(null_server(first_token_ms=60, gap_ms=15), default_model, tmp_path)
    said.loads += [("null server", one) for one in found]
    for one in found:
        assert (one.done, one.output_tokens) == (REQUESTS, TOKENS), one
        assert 60 <= one.ttft_ms < 75, one
        assert 14.5 <= one.gap_ms < 17, one


def test_all_clients_end_well_against_our_server(default_model: Path, tmp_path: Path, said: Said) -> None:
    with server_process.started(default_model, (), tmp_path / "log") as (base, _):
        found = everyone(base, default_model, tmp_path)
    said.loads += [("serveproof.server", one) for one in found]
    for one in found:
        assert (one.done, one.output_tokens) == (REQUESTS, TOKENS), one
        assert 0 < one.gap_ms < one.ttft_ms * TOKENS, one
