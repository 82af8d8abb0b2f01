"""Rule profile_decoder: where the time of a decoder's prefill and decode goes, by model shape, batch and context.

Needs --model, any config.json of the Llama family; weights are random in its shape. Prints the hotspot table of every
point, what would pay most first. Writes profile_records.DecoderProfileRecord and the traces beside it. On a CPU as
well.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import msgspec

from serveproof import pairs, script
from serveproof.bench import profiling_decoder
from serveproof.bench.processes import answered
from serveproof.bench.profiling_job import DecoderJob, DecoderReply, add_options, options_of
from serveproof.bench.profiling_kernel import ceilings_of, summary, table
from serveproof.engine.config import read_config
from serveproof.errors import UserError
from serveproof.hardware import key
from serveproof.hardware.lease import lease
from serveproof.profile_records import DecoderProfileRecord
from serveproof.provenance import collect
from serveproof.results import HardwareRecord, read, write

WORKER, LIMIT_S = "serveproof.bench.profiling_decoder", 3600
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def work(arguments: argparse.Namespace) -> None:
    hardware = arguments.key or ("cpu" if arguments.cpu else key.detect())
    key.require(hardware)
    device, options = key.device_of(hardware), options_of(arguments)
    model = arguments.model / "config.json" if arguments.model.is_dir() else arguments.model
    profiling_decoder.check(read_config(model), arguments.batch, arguments.context, str(model))
    out = arguments.out or pairs.ROOT / "results" / hardware / "decoder_profile.json"
    traces = arguments.out_traces or out.parent / f"{out.stem}_traces"
    traces.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    os.environ["SERVEPROOF_RANGES"] = "1"  # the process that profiles names the engine's phases
    with lease(device):
        given = arguments.hardware
        ceilings = read(given, HardwareRecord).ceilings if given else ceilings_of(hardware, arguments.threads)
        job = DecoderJob(
            mode="profile",
            pair="",
            cases=[],
            device=device,
            threads=arguments.threads,
            rounds=1,
            warmup_rounds=1,
            seed=0,
            model=str(model),
            batches=arguments.batch,
            contexts=arguments.context,
            dtype=arguments.dtype or DTYPES[device],
            ceilings=ceilings,
            traces=str(traces),
            trace_bytes=options.trace_bytes,
        )
        answer, failure = answered(job, WORKER, LIMIT_S)
    if failure:
        raise UserError(f"{model}: the profiling process ended with {failure.splitlines()[-1] if failure else ''}")
    reply = msgspec.json.decode(answer, type=DecoderReply)
    notes = ["hardware counters: run a pair's deep_dive"] if options.mode == "deep_dive" else []
    for point in reply.points:
        print(f"\n{point.phase}, batch {point.batch}, context {point.context}", *summary(point.profile), sep="\n")
        if point.profile.hotspots:
            print(table(point.profile))
    write(
        out,
        DecoderProfileRecord(
            hardware=hardware,
            model=str(model),
            parameters=reply.parameters,
            dtype=job.dtype,
            mode=options.mode,
            points=reply.points,
            notes=notes,
            seconds=time.monotonic() - started,
            provenance=collect(pairs.ROOT),
        ),
    )
    print(f"\nwritten: {out}")


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--model", type=Path, required=True, help="a config.json, or a folder that holds one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[128, 1024])
    add_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--key", help="the hardware key that the run is for; this machine's by default")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, although there is a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hardware", type=Path, help="hardware.json; without it the ceilings are measured first")
    parser.add_argument("--out", type=Path, help="results/{hardware}/decoder_profile.json by default")
    parser.add_argument("--out-traces", type=Path, help="a folder; beside --out by default")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
