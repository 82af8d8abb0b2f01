"""A decoder with experts served by the engine under synthetic traffics: tokens/s, expert load, and no row dropped.

Attention is tensor parallel, experts are spread over the ranks and rows travel to them. Weights are random; the routers
follow serveproof.ops.moe_workload's traffics. In float32 the tokens must be those of one rank. Steps run without CUDA
graphs: how many rows travel is known to the host only in each step.

Needs a shape with experts, and one rank or more, started by scripts/start_ranks.py. Writes a RankedRecord to --out;
without it nothing. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from serveproof.bench import engine_load
from serveproof.bench.statistics import estimate_positive
from serveproof.distributed import expert_serving, group, record
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import ExpertLoadPoint, RankedCase, RankedFigure
from serveproof.engine.config import ModelConfig, read_config
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.loader import check_shares, random_model
from serveproof.engine.parallel import SINGLE, Group
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.model_names import find_model, model_name
from serveproof.ops.moe_workload import KINDS

NAME = "synthetic_moe_inference_benchmark"


def config_of(arguments: argparse.Namespace) -> ModelConfig:
    """The model's config with --layers of its layers."""
    path = find_model(arguments.model)
    config = read_config(path / "config.json" if path.is_dir() else path)
    if config.experts is None:
        raise UserError(f"--model {arguments.model}: has no experts; name a Mixtral or Qwen3-MoE, such as moe-tiny")
    if arguments.layers > config.num_hidden_layers:
        raise UserError(f"--layers {arguments.layers}: {arguments.model} has {config.num_hidden_layers}")
    return replace(config, num_hidden_layers=arguments.layers or config.num_hidden_layers)


Served = tuple[list[list[int]], list[float], expert_serving.Counted]


def served(arguments: argparse.Namespace, ranks: Ranks, config: ModelConfig, shared: Group, kind: str) -> Served:
    """(tokens, output tokens/s of each run, rows counted over all runs)."""
    model = random_model(config, arguments.seed, DTYPES[arguments.dtype], ranks.device, shared)
    counted = expert_serving.follow(model, kind, arguments.seed, ranks.device)
    settings = Settings(
        dtype=arguments.dtype, device=ranks.device.type, max_running=arguments.requests,
        token_budget=max(arguments.requests, 512), max_model_len=arguments.prompt + arguments.tokens,
        prefix_caching=False, graphs=False, fused=False,
    )  # fmt: skip
    engine = start_with(model, settings)
    load = engine_load.make_load(
        arguments.requests, (max(1, arguments.prompt // 2), arguments.prompt), (1, 1), config.vocab_size, seed=5
    )
    params = SamplingParams(max_tokens=arguments.tokens, ignore_eos=True)
    tokens: list[list[int]] = []
    rates = []
    for number in range(arguments.runs + 1):
        started = time.perf_counter()
        done = [one.tokens for one in engine.generate(load.prompts, params)]
        rates.append(sum(map(len, done)) / (time.perf_counter() - started))
        tokens += [] if number else done
    return tokens, rates[1:], counted


def point_of(
    arguments: argparse.Namespace, ranks: Ranks, config: ModelConfig, kind: str
) -> tuple[ExpertLoadPoint, RankedCase]:
    """One traffic, and whether no row was lost and the tokens are one rank's."""
    shared = replace(ranks.group, expert_parallel=True)
    tokens, rates, counted = served(arguments, ranks, config, shared, kind)
    computed = counted.computed.clone()
    dist.all_reduce(computed)
    rows_E = counted.chosen_E.cpu().float()
    by_rank = rows_E.view(ranks.world, -1).sum(1)
    rows, done = int(rows_E.sum()), int(computed)
    point = ExpertLoadPoint(
        traffic=kind,
        requests=arguments.requests,
        output_tokens=sum(map(len, tokens)),
        output_tokens_per_s=estimate_positive([np.array(ranks.gathered(rates)).min(axis=0)], "tokens/s"),
        imbalance=float(rows_E.max() / rows_E.mean()),
        rank_imbalance=float(by_rank.max() / by_rank.mean()),
        active_experts=int((rows_E > 0).sum()),
        rows=rows,
        computed=done,
        dropped=rows - done,
    )
    wrong = f"{rows - done} of {rows} rows dropped" if rows != done else ""
    told = f"{rows} rows chosen, all computed"
    if arguments.dtype == "fp32" and ranks.world > 1:
        alone, _, _ = served(argparse.Namespace(**{**vars(arguments), "runs": 1}), ranks, config, SINGLE, kind)
        other = [rank for rank, equal in enumerate(ranks.gathered(alone == tokens)) if not equal]
        wrong = wrong or (f"ranks {other}: other tokens than one rank's" if other else "")
        told += "; tokens equal to one rank's"
    axes = {
        "model": model_name(find_model(arguments.model)), "layers": config.num_hidden_layers, "dtype": arguments.dtype,
        "requests": arguments.requests, "prompt": arguments.prompt, "tokens": arguments.tokens, "ranks": ranks.world,
    }  # fmt: skip
    figures = {"output_tokens_per_s": RankedFigure(point.output_tokens_per_s, True)}
    if wrong:
        return point, RankedCase(kind, axes, "failed", wrong)
    return point, RankedCase(kind, axes, "passed", told, figures)


@torch.inference_mode()
def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    config = ranks.together(lambda: config_of(arguments))
    ranks.together(lambda: check_shares(config, replace(ranks.group, expert_parallel=True)))
    both = [point_of(arguments, ranks, config, kind) for kind in arguments.traffics]
    points, cases = [point for point, _ in both], [case for _, case in both]
    record.finish(NAME, arguments, ranks, cases, expert_loads=points)


def main() -> None:
    parser = record.parser(__doc__ or "")
    parser.add_argument("--model", default="moe-tiny", help="moe-tiny, qwen3-30b-a3b, or a config.json with experts")
    parser.add_argument("--layers", type=int, default=0, help="of the model's layers; 0: all")
    parser.add_argument("--dtype", default="fp32", choices=COMPUTE)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=48, help="tokens of the longest prompt")
    parser.add_argument("--tokens", type=int, default=12, help="tokens to generate for each request")
    parser.add_argument("--traffics", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    group.run(work, arguments, record.device(arguments))


if __name__ == "__main__":
    main()
