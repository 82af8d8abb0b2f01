"""The serving engine's speed: a batch of requests, one request alone, and one long prompt, beside what the machine
could do at best by its measured ceilings.

--model is a directory of real weights, or llama-1b, llama-8b or a config.json, which get seeded random weights.
--peer transformers runs its continuous batching on the same requests in a process of its own; --peer llama.cpp its
server on --gguf, the file that the model came from.

Needs the machine alone: it waits for its lease. Prints a table. Writes an EngineRecord to --out; without it nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch

from serveproof import script
from serveproof.bench import engine_load
from serveproof.bench.peer_job import PeerJob
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware import ceilings
from serveproof.hardware.key import device_of
from serveproof.hardware.start import start_torch
from serveproof.model_names import find_model, model_name
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import Ceilings, HardwareRecord, read, write
from serveproof.serving_results import EngineRecord, PeerLoad

WEIGHT_BYTES = {None: 0.0, "int8": 1.0, "int4": 0.5 + 4 / 32, "fp8": 1.0}
TOKEN_PROMPT, TOKEN_COUNT = 128, 64
PEERS = {
    "transformers": "serveproof.bench.peer_transformers",
    "llama.cpp": "serveproof.bench.peer_llama_cpp",
}


def peer(arguments: argparse.Namespace, settings: Settings, load: engine_load.Load) -> PeerLoad:
    """The same load through a peer, started after this process has given its GPU memory back."""
    model = arguments.gguf if arguments.peer == "llama.cpp" else find_model(arguments.model)
    job = PeerJob(str(model), settings.device, settings.dtype, arguments.threads, load.prompts, load.outputs)
    with tempfile.TemporaryDirectory(prefix="serveproof-") as folder:
        asked, answered = Path(folder, "job.json"), Path(folder, "reply.json")
        asked.write_bytes(msgspec.json.encode(job))
        subprocess.run([sys.executable, "-m", PEERS[arguments.peer], asked, answered], check=True, cwd=ROOT)
        return msgspec.json.decode(answered.read_bytes(), type=PeerLoad)


def ceilings_of(arguments: argparse.Namespace, device: str) -> tuple[str, Ceilings]:
    """The machine's name and ceilings: from hardware.json, or measured now."""
    if arguments.hardware:
        record = read(arguments.hardware, HardwareRecord)
        return record.name, record.ceilings
    name = torch.cuda.get_device_name() if device == "cuda" else "this CPU"
    return name, ceilings.measure(device)


def work(arguments: argparse.Namespace) -> None:
    if arguments.peer == "llama.cpp" and not (arguments.gguf and arguments.gguf.is_file()):
        raise UserError(f"--gguf {arguments.gguf}: no such file; --peer llama.cpp needs the model as a GGUF")
    device = device_of(arguments.key)
    start_torch(device, arguments.threads)
    settings = Settings(
        dtype=arguments.dtype,
        weights=arguments.weights,
        cache_dtype=arguments.cache_dtype,
        device=device,
        max_running=arguments.max_running,
        token_budget=arguments.token_budget,
        max_model_len=max(
            arguments.prompts[1] + arguments.outputs[1], arguments.prefill + 1, TOKEN_PROMPT + TOKEN_COUNT
        ),
        prefix_caching=False,
        compile_block=arguments.compile,
        graphs=not arguments.no_graphs,
    )
    path = find_model(arguments.model)
    name, machine = ceilings_of(arguments, device)
    started = time.perf_counter()
    model = load_or_draw(path, arguments.seed, DTYPES[settings.dtype], device)
    prepare_(model, settings.weights)
    engine = start_with(model, settings, say=lambda text: script.say(arguments.log, text))
    start_s = time.perf_counter() - started
    config, dtype = model.config, str(DTYPES[settings.dtype]).removeprefix("torch.")
    plain = DTYPES[settings.dtype].itemsize
    packed = WEIGHT_BYTES[settings.weights] or plain
    head = plain if settings.weights in (None, "fp8") else WEIGHT_BYTES["int8"]  # int4's head is int8 too
    cache = DTYPES[settings.cache_dtype or settings.dtype].itemsize
    counted = engine_load.work_of(config, packed, head, cache)
    load = engine_load.make_load(
        arguments.requests, tuple(arguments.prompts), tuple(arguments.outputs), config.vocab_size, arguments.seed
    )
    warm = engine_load.make_load(4, (40, 60), (3, 9), config.vocab_size, arguments.seed + 1)
    engine_load.run_load(engine, warm, counted, machine, dtype)
    runs = []
    for number in range(arguments.runs):
        runs.append(engine_load.run_load(engine, load, counted, machine, dtype))
        script.say(arguments.log, f"run {number + 1}: {runs[-1].output_tokens_per_s:.0f} output tokens/s")
    token_ms = engine_load.token_ms(engine, TOKEN_PROMPT, TOKEN_COUNT, config.vocab_size)
    engine_load.prefill_s(engine, arguments.prefill, config.vocab_size, seed=2)
    prefill_s = engine_load.prefill_s(engine, arguments.prefill, config.vocab_size, seed=3)
    read_ms = 1e3 * counted.weight_bytes / machine.read_bandwidth_bytes_per_s
    flops = (
        arguments.prefill * counted.token_flops
        + counted.head_flops
        + arguments.prefill * (arguments.prefill + 1) / 2 * counted.context_flops
    )
    runner = engine.runner
    graphs = runner.decode_graphs if isinstance(runner, ModelRunner) else None
    graphs_s, graphs_bytes = (graphs.captured.seconds, graphs.captured.device_bytes) if graphs else (0.0, 0)
    del engine, model, runner, graphs
    if device == "cuda":
        torch.cuda.empty_cache()
    record = EngineRecord(
        hardware=arguments.key,
        machine=name,
        model=model_name(path),
        dtype=settings.dtype,
        weights=settings.weights or settings.dtype,
        cache_dtype=settings.cache_dtype or settings.dtype,
        max_running=settings.max_running,
        token_budget=settings.token_budget,
        start_s=start_s,
        graph_capture_s=graphs_s,
        graph_bytes=graphs_bytes,
        runs=runs,
        token_ms=token_ms,
        weights_read_ms=read_ms,
        token_ratio=token_ms / read_ms,
        prefill_tokens=arguments.prefill,
        prefill_s=prefill_s,
        prefill_flops_fraction=flops / prefill_s / machine.matmul_flops_per_s[dtype],
        peer=peer(arguments, settings, load) if arguments.peer else None,
        provenance=collect(ROOT),
    )
    if arguments.out:
        write(arguments.out, record)
    print(table(record))


def table(record: EngineRecord) -> str:
    """What was measured, one line a figure."""
    best = max(record.runs, key=lambda run: run.output_tokens_per_s)
    lines = [
        f"{record.model} {record.dtype}, weights {record.weights}, cache {record.cache_dtype}, on {record.machine}",
        f"{best.requests} requests, {best.prompt_tokens} + {best.output_tokens} tokens in {best.steps} steps: "
        f"{best.output_tokens_per_s:.0f} output tokens/s, {100 * best.roofline_fraction:.0f} % of the steps' roofline "
        f"(runs: {', '.join(f'{run.output_tokens_per_s:.0f}' for run in record.runs)})",
        f"TTFT p50 {best.ttft_p50_ms:.0f} ms, TPOT p50 {best.tpot_p50_ms or 0:.2f} ms, {best.preemptions} preemptions",
        f"one request: {record.token_ms:.3f} ms a token, {record.token_ratio:.2f} x its weights' read time",
        f"prefill of {record.prefill_tokens}: {1e3 * record.prefill_s:.1f} ms, "
        f"{100 * record.prefill_flops_fraction:.0f} % of the measured {record.dtype} rate",
        f"start {record.start_s:.1f} s, graphs {record.graph_capture_s:.1f} s and {record.graph_bytes / 2**20:.0f} MiB",
    ]
    if record.peer:
        own = record.peer.output_tokens_per_s
        told = (
            f"{own:.0f} output tokens/s: serveproof is {best.output_tokens_per_s / own:.1f} x"
            if own
            else record.peer.reason
        )
        lines.append(f"{record.peer.name} {record.peer.version}: {told}")
    return "\n".join(lines)


def main() -> None:
    parser = script.engine_parser(__doc__ or "", COMPUTE, "bf16")
    parser.add_argument("--hardware", type=Path, help="hardware.json of this machine; without it ceilings are measured")
    parser.add_argument("--weights", help="int8 or int4 on a CPU, fp8 on CUDA")
    parser.add_argument("--cache-dtype")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs=2, default=(100, 1024), metavar=("LOW", "HIGH"))
    parser.add_argument("--outputs", type=int, nargs=2, default=(100, 1024), metavar=("LOW", "HIGH"))
    parser.add_argument("--prefill", type=int, default=8192, help="tokens of the long prompt")
    parser.add_argument("--max-running", type=int, default=256)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile of the repeated block")
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--gguf", type=Path, help="what --peer llama.cpp reads")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
