"""guidellm and aiperf: each ends well against our server, and all clients say the same of latencies that are known.

`make test-clients` installs them (2.3 GB) into an environment of their own, runs this and keeps what they said in
docs/clients.md. Without it these tests are skipped.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tabulate import tabulate

from serveproof.load_test import server_process
from tests.clients import clients
from tests.clients.clients import REQUESTS, TOKENS, Found
from tests.load_test.conftest import null_server  # noqa: F401 - known latencies

PROGRAMS = os.environ.get("SERVEPROOF_CLIENTS", "")
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="guidellm and aiperf take 2.3 GB: `make test-clients` runs them")
OUT = Path(__file__).resolve().parents[2] / "docs/clients.md"
HEADS = ["client", "server", "answered", "output tokens", "TTFT p50 (ms)", "TPOT or ITL p50 (ms)"]


@pytest.fixture(scope="module")
def said() -> Iterator[list[tuple[str, Found]]]:
    """(server, what a client said of it), written to docs/clients.md in the end."""
    rows: list[tuple[str, Found]] = []
    yield rows
    if not rows:
        return
    listed = subprocess.run(
        [Path(PROGRAMS) / "python", "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    versions = [line.replace("==", " ") for line in listed.stdout.splitlines() if line.split("==")[0] in
                ("aiperf", "guidellm", "lm_eval", "torch")]  # fmt: skip
    table = tabulate([[one.client, server, one.done, f"{one.output_tokens:g}", f"{one.ttft_ms:.1f}",
                       f"{one.gap_ms:.2f}"] for server, one in rows], HEADS, tablefmt="github",
                     disable_numparse=True)  # fmt: skip
    OUT.write_text(
        f"# Other load clients\n\nWritten by `make test-clients` on {datetime.date.today()}; {', '.join(versions)}. "
        f"{REQUESTS} streamed requests of {TOKENS} tokens, {clients.AT_ONCE} at once. The null server's latencies are "
        "known: 60 ms to the first token, 15 ms between tokens. A real server's figures are shown, not compared: each "
        f"client sends prompts of its own.\n\n{table}\n"
    )


def everyone(base: str, tokenizer: Path, folder: Path) -> list[Found]:
    programs = Path(PROGRAMS)
    return [
        clients.ours(base),
        clients.guidellm(programs, base, tokenizer, folder),
        clients.aiperf(programs, base, tokenizer, folder),
    ]


def test_all_clients_recover_known_latencies(
    null_server: Callable[..., str],  # noqa: F811 - the fixture
    default_model: Path,
    tmp_path: Path,
    said: list[tuple[str, Found]],
) -> None:
    found = everyone(null_server(first_token_ms=60, gap_ms=15), default_model, tmp_path)
    said += [("null server", one) for one in found]
    for one in found:
        assert (one.done, one.output_tokens) == (REQUESTS, TOKENS), one
        assert 60 <= one.ttft_ms < 75, one
        assert 14.5 <= one.gap_ms < 17, one


def test_all_clients_end_well_against_our_server(
    default_model: Path, tmp_path: Path, said: list[tuple[str, Found]]
) -> None:
    with server_process.started(default_model, (), tmp_path / "log") as (base, _):
        found = everyone(base, default_model, tmp_path)
    said += [("serveproof.server", one) for one in found]
    for one in found:
        assert (one.done, one.output_tokens) == (REQUESTS, TOKENS), one
        assert 0 < one.gap_ms < one.ttft_ms * TOKENS, one
