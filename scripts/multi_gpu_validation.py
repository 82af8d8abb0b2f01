"""Whether several ranks compute what one computes, and what their links carry: scripts/start_ranks.py starts it.

Collectives exact, and their time and bandwidth by size; NVLink's topology and the bandwidth between peers;
tensor-parallel logits, expert-parallel layers and every step of the engine equal to one rank's; a rank that dies
noticed by the others. With --speed-model, the engine's time a token over all ranks against one.

Needs two ranks or more. Writes a RankedRecord to --out; without it nothing. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from serveproof.bench import engine_load
from serveproof.distributed import collectives, equality, group, liveness, record, topology
from serveproof.distributed.direct import direct_sum
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import RankedCase, RankedFigure
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.parallel import SINGLE, Group
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.model_names import find_model, model_name
from serveproof.results import Estimate

SIZES = {"cpu": [2**12, 2**16, 2**20], "cuda": [2**10, 2**13, 2**16, 2**19, 2**22, 2**26]}
PEER_BYTES = {"cpu": 2**22, "cuda": 2**28}


def token_times(ranks: Ranks, arguments: argparse.Namespace, shared: Group) -> list[float]:
    """ms a token of one request, `runs` times, with the model over `shared`; freed before it returns."""
    model = load_or_draw(
        find_model(arguments.speed_model), arguments.seed, DTYPES[arguments.dtype], ranks.device, shared
    )
    prepare_(model, None)
    settings = Settings(
        dtype=arguments.dtype, device=ranks.device.type, max_running=1, token_budget=512, max_model_len=512
    )
    engine = start_with(model, settings)
    engine_load.token_ms(engine, 16, 12, model.config.vocab_size)
    return [engine_load.token_ms(engine, 16, 64, model.config.vocab_size) for _ in range(arguments.runs)]


def tensor_parallel_speed(ranks: Ranks, arguments: argparse.Namespace) -> RankedCase:
    """All ranks together against one; the single runs go on every rank at once, each on its own."""
    axes: dict[str, Any] = {"ranks": ranks.world, "batch": 1, "dtype": arguments.dtype}
    axes["model"] = "none" if arguments.speed_model == "none" else model_name(find_model(arguments.speed_model))
    if ranks.world == 1 or arguments.speed_model == "none":
        reason = "one rank" if ranks.world == 1 else "no model was named for it (--speed-model)"
        return RankedCase("tensor_parallel_speed", axes, "skipped", reason)
    direct, note = direct_sum(ranks, DTYPES[arguments.dtype])
    together = ranks.together(lambda: token_times(ranks, arguments, replace(ranks.group, direct=direct)))
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    dist.barrier()
    alone = token_times(ranks, arguments, SINGLE)
    ours, single = median(together), median(alone)
    # every run of the one against every run of the other bounds the ratio
    speedup = Estimate(single / ours, min(alone) / max(together), max(alone) / min(together), "x")
    token = Estimate(ours, min(together), max(together), "ms")
    figures = {"speedup": RankedFigure(speedup, True), "token_ms": RankedFigure(token, False)}
    reason = f"{ours:.3f} ms a token against {single:.3f}; {note}"
    return RankedCase("tensor_parallel_speed", axes, "passed", reason, figures)


def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    dense, sparse = equality.config_for(ranks.world), equality.config_for(ranks.world, experts=True)
    where = ranks.device.type
    if arguments.speed_model != "none":  # before minutes of work
        ranks.together(lambda: find_model(arguments.speed_model))
    cases = collectives.right(ranks)
    sizes = arguments.sizes or SIZES[where]
    points, by_size = collectives.all_reduce_by_size(ranks, sizes)
    points += collectives.others_by_size(ranks, sizes)
    matrix, peers = topology.peer_bandwidth(ranks, PEER_BYTES[where])
    cases += [*by_size, peers]
    cases.append(equality.tensor_parallel_logits(ranks, dense))
    cases.append(equality.expert_parallel_layer(ranks, sparse))
    cases.append(equality.equal_steps(ranks, dense, "tensor_parallel_steps"))
    cases.append(equality.equal_steps(ranks, sparse, "expert_parallel_steps", expert_parallel=True))
    cases.append(tensor_parallel_speed(ranks, arguments))
    cases.append(liveness.noticed(ranks))
    record.finish("multi_gpu_validation", arguments, ranks, cases, collectives=points, matrix=matrix)


def main() -> None:
    parser = record.parser(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", help="bytes of the collectives that are timed")
    parser.add_argument("--speed-model", default="none", help="llama-8b, a directory or a config.json: time its tokens")
    parser.add_argument("--dtype", default="bf16", choices=COMPUTE, help="of --speed-model")
    parser.add_argument("--runs", type=int, default=5, help="of --speed-model, each way")
    arguments = parser.parse_args()
    group.run(work, arguments, record.device(arguments))


if __name__ == "__main__":
    main()
