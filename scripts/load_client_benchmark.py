"""How fast the load client is: streamed answers from a server that computes nothing, both on this machine's cores.

Prints requests/s, the client's send lag and its event loop's, and processor time; exit code 1 when the run is not valid
(lag p99 over 10 ms) or not every request was answered. Needs free cores: beside a busy neighbour the figures are his.
Writes no file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import numpy as np
import psutil

from serveproof import script
from serveproof.load_records import Slo
from serveproof.load_test import arrivals, wire
from serveproof.load_test.outcomes import ClientJob, Planned
from serveproof.load_test.processes import drive
from serveproof.load_test.run_figures import summarize


def work(arguments: argparse.Namespace) -> None:
    behaviour = f'{{"first_token_ms": {arguments.first_token_ms}, "gap_ms": {arguments.gap_ms}}}'
    command = [sys.executable, "-m", "serveproof.load_test.null_server", "--behaviour", behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout  # noqa: S101 - asked for above
            url = f"http://127.0.0.1:{int(server.stdout.readline())}{wire.PATHS['completions']}"
            at_s = arrivals.draw("poisson", arguments.rate, arguments.duration, np.random.default_rng(arguments.seed))
            prompt = list(range(arguments.prompt))
            requests = [
                Planned(
                    number, float(at), wire.body("completions", "null", prompt, arguments.tokens, seed=number + 1),
                    "", "", arguments.prompt, arguments.tokens,
                )
                for number, at in enumerate(at_s)
            ]  # fmt: skip
            load_before = os.getloadavg()[0]
            driven = drive(ClientJob(url, requests, 30.0), arguments.client_processes)
            server_cpu = sum(psutil.Process(server.pid).cpu_times()[:2]) / arguments.duration
        finally:
            server.terminate()
    run = summarize(driven, 1, arguments.duration, Slo(1e3, 1e3)).record
    assert run.ttft  # noqa: S101 - a run without an answer ends above
    print(
        f"{run.requests / arguments.duration:.0f} requests/s for {arguments.duration:g} s, {arguments.tokens} streamed "
        f"chunks each, {arguments.client_processes} client processes, {psutil.cpu_count()} cores "
        f"(load average before: {load_before:.1f})\n"
        f"endings: {run.endings}\n"
        f"send lag p50 {run.lag_p50_ms:.2f} ms, p99 {run.lag_p99_ms:.2f} ms; event loop p99 "
        f"{run.loop_lag_p99_ms:.2f} ms\n"
        f"TTFT p50 {run.ttft.p50.value:.2f} ms, p99 {run.ttft.p99.value:.2f} ms (the server's: "
        f"{arguments.first_token_ms:g} ms)\n"
        f"processor: busiest client {100 * run.client_cpu_share:.0f} % of a core, server {100 * server_cpu:.0f} %"
    )
    if not run.valid or run.endings != {"ok": run.requests}:
        script.say(arguments.log, f"not valid: {run.invalid_reason or run.first_errors}")
        raise SystemExit(1)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--duration", type=float, default=10.0)
    parser.add_argument("--client-processes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--first-token-ms", type=float, default=5.0)
    parser.add_argument("--gap-ms", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
