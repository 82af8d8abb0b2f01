"""Every rank's KV cache copied to the next rank after each step, over symmetric memory; --validate compares the copies.

Each rank serves requests of its own. The pages that a step wrote are put into the next rank's memory, a signal follows,
and with --validate every page's checksum is compared after every step, a copy is corrupted on purpose and must be
caught, put again and read back. Without GPUs that map each other's memory it runs over gloo or NCCL and says why.

Needs two ranks or more: scripts/start_ranks.py starts them, and run by itself it does so itself, a rank a GPU, or two
on the CPU. Writes a RankedRecord to --out; without it nothing. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import torch

from serveproof.bench import engine_load
from serveproof.distributed import group, record, replicas
from serveproof.distributed.group import Ranks
from serveproof.distributed.replicas import Replicas
from serveproof.distributed_records import RankedCase, RankedFigure
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.hardware.key import detect, visible_gpus
from serveproof.model_names import find_model, model_name
from serveproof.pairs import ROOT
from serveproof.results import Estimate


def started(arguments: argparse.Namespace, ranks: Ranks) -> Replicas:
    """The whole model on each rank, with other requests; the engine waits for each step."""
    where = ranks.device.type
    model = load_or_draw(find_model(arguments.model), arguments.seed, DTYPES[arguments.dtype], ranks.device)
    prepare_(model, None)
    longest = arguments.prompt + arguments.tokens
    settings = Settings(
        dtype=arguments.dtype, device=where, max_running=arguments.requests, token_budget=max(arguments.requests, 256),
        max_model_len=longest, overlap=False, prefix_caching=False,
    )  # fmt: skip
    engine = start_with(model, settings)
    load = engine_load.make_load(
        arguments.requests, (max(1, arguments.prompt // 2), arguments.prompt), (1, 1), model.config.vocab_size,
        seed=100 + ranks.rank,
    )  # fmt: skip
    for number, prompt in enumerate(load.prompts):
        engine.add(str(number), prompt, SamplingParams(max_tokens=arguments.tokens, ignore_eos=True))
    return replicas.made(ranks, engine)


def after_every_step(ranks: Ranks, copies: Replicas) -> RankedCase:
    """Steps until no rank has any left."""
    while any(ranks.gathered(copies.engine.busy)):
        copies.step()
    told = ranks.gathered([(number, one.wrong) for number, one in enumerate(copies.steps) if one.wrong])
    pages = sum(ranks.gathered(sum(one.pages for one in copies.steps)))
    axes = {"steps": len(copies.steps), "pages_put": pages, "transport": copies.slots.name, "ranks": ranks.world}
    wrong = [f"rank {rank}, step {one[0][0]}: pages {one[0][1][:8]}" for rank, one in enumerate(told) if one]
    reason = "; ".join(wrong) or f"{pages} pages put in {len(copies.steps)} steps; after each, every page's sum equal"
    if not pages:
        return RankedCase("pages_equal_after_every_step", axes, "failed", "no page was written: nothing was compared")
    return RankedCase("pages_equal_after_every_step", axes, "failed" if wrong else "passed", reason)


def corruption(ranks: Ranks, copies: Replicas) -> list[RankedCase]:
    """One bit of one page of the last rank's copy flipped: caught there alone; then put again, and read back."""
    pages = sorted({block for one in ranks.gathered(used(copies)) for block in one})
    page = pages[len(pages) // 2]
    if ranks.rank == ranks.world - 1:
        copies.corrupt(page)
    found = ranks.gathered(copies.differing())
    expected = [[page] if rank == ranks.world - 1 else [] for rank in range(ranks.world)]
    caught = RankedCase(
        "corrupted_page_is_caught", {"page": page}, "passed" if found == expected else "failed",
        f"one bit of page {page} at rank {ranks.world - 1}: found {found}",
    )  # fmt: skip
    copies.put_again([page])
    left, back = ranks.gathered(copies.differing()), ranks.gathered(copies.got_back(pages))
    mended = not any(left) and all(back)
    reason = f"{len(pages)} pages of each rank read back from its holder" if mended else f"differ: {left}, back: {back}"
    return [caught, RankedCase("pages_put_again_and_read_back", {}, "passed" if mended else "failed", reason)]


def used(copies: Replicas) -> list[int]:
    """Blocks that hold anything."""
    pool = copies.runner.cache.pool
    found: list[int] = pool.float().abs().sum(dim=(0, 1, 3, 4, 5)).nonzero().flatten().tolist()
    return [block for block in found if block]


def skew(ranks: Ranks, copies: Replicas) -> RankedCase:
    """How far apart ranks know that a step's pages are in place everywhere."""
    axes = {"transport": copies.slots.name, "ranks": ranks.world}
    if ranks.nodes > 1:
        return RankedCase("replica_skew", axes, "skipped", "several machines have no clock in common")
    skews = replicas.skews_us(ranks.gathered([one.met_ns for one in copies.steps]))
    if len(skews) < 20:
        return RankedCase("replica_skew", axes, "skipped", f"{len(skews)} steps are too few for a p99")
    p50, p99 = (float(np.percentile(skews, share)) for share in (50, 99))
    figures = {
        name: RankedFigure(Estimate(value, min(skews), max(skews), "us"), higher_is_better=False)
        for name, value in (("p50", p50), ("p99", p99))
    }
    put_us = 1e6 * float(np.median([one.put_s for one in copies.steps]))
    reason = f"p50 {p50:.1f}, p99 {p99:.1f} us over {len(skews)} steps; a put to its signal {put_us:.0f} us"
    return RankedCase("replica_skew", axes, "passed", reason, figures)


def start_ranks(given: list[str]) -> None:
    """Become torchrun with a rank a GPU of this machine, or two on its CPU where it has no two GPUs."""
    gpus = len(visible_gpus())
    here = ["--key", detect()] if gpus > 1 else ["--device", "cpu"]
    starter = ROOT / "scripts" / "start_ranks.py"
    command = [sys.executable, str(starter), "--nodes", "1", "--ranks", str(max(2, gpus)), __file__, *here, *given]
    os.execv(sys.executable, command)  # noqa: S606 - no shell wanted


def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    if ranks.world == 1:
        reason = "one rank has nowhere to keep a copy: start two, on two GPUs or with --device cpu over gloo"
        record.finish("symmetric_memory_inference", arguments, ranks, [RankedCase("replicas", {}, "skipped", reason)])
        return
    copies = ranks.together(lambda: started(arguments, ranks))
    notes = [f"{model_name(find_model(arguments.model))}, pages over {copies.slots.name}"]
    if copies.missing:
        notes.append(f"no symmetric memory: {copies.missing}")
    begun = time.perf_counter()
    with torch.inference_mode():
        cases = [after_every_step(ranks, copies)]
        if arguments.validate:
            cases += corruption(ranks, copies)
        cases.append(skew(ranks, copies))
    notes.append(f"{len(copies.steps)} steps in {time.perf_counter() - begun:.1f} s, checksums included")
    record.finish("symmetric_memory_inference", arguments, ranks, cases, notes=notes)


def main() -> None:
    parser = record.parser(__doc__ or "")
    parser.add_argument(
        "--model", help="a model directory, llama-1b, llama-8b or a config.json; by default llama-1b, on a CPU tiny"
    )
    parser.add_argument("--dtype", default="fp32", choices=COMPUTE)
    parser.add_argument("--requests", type=int, default=4, help="of each rank")
    parser.add_argument("--prompt", type=int, default=48, help="tokens of the longest prompt")
    parser.add_argument("--tokens", type=int, default=40, help="tokens to generate for each request")
    parser.add_argument("--validate", action="store_true", help="corrupt a page too, and see that it is caught")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        start_ranks(sys.argv[1:])
    where = record.device(arguments)
    arguments.model = arguments.model or ("llama-1b" if where == "cuda" else "tiny")
    group.run(work, arguments, where)


if __name__ == "__main__":
    main()
