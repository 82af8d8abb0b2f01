"""The command line that the load test and the sweep share, and what they make of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serveproof import script
from serveproof.errors import UserError
from serveproof.hardware.key import device_of, visible_gpus
from serveproof.hardware.lease import lease
from serveproof.load_records import SLOS, Slo
from serveproof.load_test import lengths, prompts, server_process
from serveproof.load_test.scenarios import Workload
from serveproof.load_test.session import Target
from serveproof.model_names import find_model
from serveproof.results import HardwareRecord, read

API_KEY = "SERVEPROOF_API_KEY"


@dataclass(frozen=True)
class Setting:
    """What is driven: where, with what, on which machine. server: its name; command: how it was started."""

    target: Target
    workload: Workload
    server: str
    command: str
    machine: str
    gpus: int
    ranks: int

    def axes(self, duration_s: float) -> dict[str, Any]:
        """What the load is and what it is for: what an expectation is tied to. One rank is left out."""
        ranks = {"tensor_parallel": self.ranks} if self.ranks > 1 else {}
        return {**self.workload.told(), "model": self.workload.model, "duration_s": duration_s, **ranks}


def add(parser: argparse.ArgumentParser) -> None:
    """The shared options."""
    parser.add_argument("--key", default="cpu", help="hardware key: cpu, h200, ...")
    parser.add_argument(
        "--model", help="the server is started with it: a model directory, llama-1b, llama-8b or a config.json"
    )
    parser.add_argument("--base-url", help="drive a running server instead (vLLM, SGLang, ...)")
    parser.add_argument(
        "--server", help=f"{', '.join(server_process.VARIANTS)}; first_come by default. With --base-url a name for it"
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks of the server that --model starts")
    parser.add_argument("--server-options", default="", help="more options for the server, as one word list")
    parser.add_argument("--route", default="completions", choices=("completions", "chat"))
    parser.add_argument("--prompts", default="lognormal:48:0.6:128", help=f"prompt lengths: {lengths.FORMS}")
    parser.add_argument("--outputs", default="lognormal:16:0.5:48", help="answer lengths, likewise")
    parser.add_argument("--long-tokens", type=int, default=1024, help="of the long prompts of long_prompts")
    parser.add_argument("--text", type=Path, help="make prompts of slices of this text")
    parser.add_argument("--slo", default="server", help=f"{', '.join(SLOS)} (MLPerf's), or TTFT:TPOT in ms")
    parser.add_argument("--client-processes", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds after which a request is given up")
    parser.add_argument(
        "--price-per-hour", type=float, default=0.0, help="of the machine: gives cost per million tokens"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the server; without it, its own choice")
    parser.add_argument("--hardware", type=Path, help="hardware.json of this machine, for its name")


def slo_of(text: str) -> Slo:
    """`server`, `interactive` or `2000:100`."""
    if text in SLOS:
        return SLOS[text]
    try:
        ttft, tpot = (float(word) for word in text.split(":"))
    except ValueError:
        ttft = tpot = 0.0
    if ttft <= 0 or tpot <= 0:
        raise UserError(f"--slo {text}: give {', '.join(SLOS)}, or TTFT:TPOT in ms, such as 2000:100")
    return Slo(ttft, tpot)


@contextmanager
def opened(arguments: argparse.Namespace, capacity_per_s: float | None = None) -> Iterator[Setting]:
    """The setting of these arguments, the server running; it holds the machine's lease while it is ours.

    capacity_per_s: where it is known already, for a server whose queue is sized by it.
    """
    if bool(arguments.model) == bool(arguments.base_url):
        raise UserError("give --model to start the server, or --base-url of one that runs; one of the two")
    if arguments.tensor_parallel < 1 or (arguments.tensor_parallel > 1 and arguments.base_url):
        raise UserError("--tensor-parallel is for the server that --model starts, and 1 or more")
    slo = slo_of(arguments.slo)
    sizes = lengths.parse(arguments.prompts, "--prompts"), lengths.parse(arguments.outputs, "--outputs")
    model = find_model(arguments.model) if arguments.model else None
    made = prompts.choose(model, arguments.text, arguments.route)
    server = arguments.server or ("external" if arguments.base_url else "first_come")
    own: tuple[str, ...] = ()
    ranks = arguments.tensor_parallel
    if model:
        own = () if ranks == 1 else ("--tensor-parallel", str(ranks))
        own += (*server_process.options_of(server, slo, capacity_per_s), *arguments.server_options.split())
    device = device_of(arguments.key)
    started = (
        nullcontext((arguments.base_url.rstrip("/"), "running already"))
        if model is None
        else server_process.started(model, own, arguments.log, arguments.threads)
    )
    with nullcontext() if arguments.base_url else lease(device, gpus=ranks), started as (base_url, command):
        api_key = os.environ.get(API_KEY, "")
        name = server_process.model_name(base_url, api_key)
        script.say(arguments.log, f"{name} at {base_url}")
        target = Target(
            base_url, arguments.route, slo, arguments.client_processes, arguments.timeout, api_key,
            arguments.price_per_hour,
        )  # fmt: skip
        workload = Workload(arguments.route, name, made, *sizes, arguments.long_tokens, arguments.seed)
        machine = read(arguments.hardware, HardwareRecord).name if arguments.hardware else arguments.key
        gpus = len(visible_gpus()) if device == "cuda" else 0
        yield Setting(target, workload, server, command, machine, gpus, ranks)
