"""What clients of others said in this run, kept as docs/clients.md."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tabulate import tabulate

from tests.clients import clients
from tests.clients.clients import REQUESTS, TOKENS, Found

PROGRAMS = Path(os.environ.get("SERVEPROOF_CLIENTS", ""))
OUT = Path(__file__).resolve().parents[2] / "docs/clients.md"
HEADS = ["client", "server", "answered", "output tokens", "TTFT p50 (ms)", "TPOT or ITL p50 (ms)"]
SHOWN = ("aiperf", "guidellm", "lm_eval", "torch")


@dataclass
class Said:
    """loads: (server, what a client said of it). perplexities: (who, of how many tokens, perplexity)."""

    loads: list[tuple[str, Found]] = field(default_factory=list)
    perplexities: list[tuple[str, int, float]] = field(default_factory=list)


@pytest.fixture(scope="session")
def said() -> Iterator[Said]:
    """Filled by the tests; written where every one of them has said its part."""
    found = Said()
    yield found
    if {server for server, _ in found.loads} == {"null server", "serveproof.server"} and found.perplexities:
        OUT.write_text(page(found))


def versions() -> list[str]:
    """`name version` of what stands in the clients' environment."""
    command = [PROGRAMS / "python", "-m", "pip", "list", "--format=freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.replace("==", " ") for line in listed if line.split("==")[0] in SHOWN]


def page(found: Said) -> str:
    """docs/clients.md."""
    loads = [
        [one.client, server, one.done, f"{one.output_tokens:g}", f"{one.ttft_ms:.1f}", f"{one.gap_ms:.2f}"]
        for server, one in found.loads
    ]
    perplexities = [[who, tokens, f"{value:.5f}"] for who, tokens, value in found.perplexities]
    return (
        f"# Other clients\n\nWritten by `make test-clients` on {datetime.date.today()}; {', '.join(versions())}.\n\n"
        f"## Load\n\n{REQUESTS} streamed requests of {TOKENS} tokens, {clients.AT_ONCE} at once. The null server's "
        "latencies are known: 60 ms to the first token, 15 ms between tokens. A real server's figures are shown, not "
        "compared: each client sends prompts of its own, and what else the machine did is in them.\n\n"
        f"{tabulate(loads, HEADS, tablefmt='github', disable_numparse=True)}\n\n"
        "## Perplexity\n\nSmolLM2-135M-Instruct in fp32 over docs/method.md: lm-eval through /v1/completions (token "
        "ids, echo, logprobs 1, max_tokens 1), and the code of perplexity_eval on the weights, over the same windows."
        "\n\n"
        f"{tabulate(perplexities, ['by', 'tokens', 'perplexity'], tablefmt='github', disable_numparse=True)}\n"
    )
