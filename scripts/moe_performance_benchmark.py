"""A layer of experts over the ranks: router placement, expert batching and the exchange, by imbalance of the traffic.

Every way is checked against all experts on one rank before it counts. Shapes: config/models/*.json with experts, or
--tokens and the model's own; the traffics are those of serveproof.ops.moe_workload.

Needs one rank or more, started by scripts/start_ranks.py. Writes a RankedRecord to --out; without it nothing. Exit code
1 when a check fails.
"""

from __future__ import annotations

import argparse

from serveproof.distributed import equality, expert_layers, group, record
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import ExpertLayerPoint, RankedCase, RankedFigure
from serveproof.engine.config import ModelConfig, read_config
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.parallel import check
from serveproof.engine.settings import COMPUTE
from serveproof.errors import UserError
from serveproof.model_names import find_model, model_name
from serveproof.ops.moe_workload import KINDS

# float32 sums in another order; bfloat16's rounding through two products and a sum over choices
BOUNDS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 4e-3}


def shape_of(arguments: argparse.Namespace, ranks: Ranks) -> ModelConfig:
    """The model's config, which must have experts that divide by the ranks."""
    path = find_model(arguments.model)
    config = read_config(path / "config.json" if path.is_dir() else path)
    if config.experts is None:
        raise UserError(f"--model {arguments.model}: has no experts; name a Mixtral or Qwen3-MoE, such as moe-tiny")
    check({"num_experts": config.experts.count}, ranks.world)
    return config


def case_of(arguments: argparse.Namespace, ranks: Ranks, points: list[ExpertLayerPoint]) -> RankedCase:
    """One traffic: the worst error against its bound, and the ratios of the ways."""
    bound = BOUNDS[arguments.dtype]
    axes = {
        "model": model_name(find_model(arguments.model)), "tokens": arguments.tokens, "dtype": arguments.dtype,
        "ranks": ranks.world,
    }  # fmt: skip
    name, worst = points[0].traffic, max(points, key=lambda one: one.error)
    if not worst.error <= bound:
        reason = f"{worst.placement}, {worst.batching}: relative error {worst.error:.3g}, bound {bound:g}"
        return RankedCase(name, axes, "failed", reason)
    by = {(one.placement, one.batching): one for one in points}
    first = points[0].placement
    grouped = by[first, "grouped"]
    figures = {
        "batching_speedup": RankedFigure(expert_layers.ratio(by[first, "one by one"].time, grouped.time), True),
        "layer_ms": RankedFigure(grouped.time, False),
    }
    if ("at_experts", "grouped") in by:
        other = by["at_experts", "grouped"].time
        figures["placement_speedup"] = RankedFigure(expert_layers.ratio(other, grouped.time), True)
    reason = (
        f"imbalance {grouped.imbalance:.1f} over experts, {grouped.rank_imbalance:.2f} over ranks; error at most "
        f"{worst.error:.2g}, bound {bound:g}"
    )
    return RankedCase(name, axes, "passed", reason, figures)


def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    config = ranks.together(lambda: shape_of(arguments, ranks))
    dtype = DTYPES[arguments.dtype]
    layer = equality.whole_experts(config, arguments.seed, ranks.device, dtype)
    points, cases = [], []
    for kind in arguments.traffics:
        traffic = expert_layers.traffic_of(kind, ranks, layer, arguments.tokens, dtype, arguments.seed)
        found = expert_layers.measured(ranks, layer, traffic, arguments.samples, arguments.calls)
        points += found
        cases.append(case_of(arguments, ranks, found))
    record.finish("moe_performance_benchmark", arguments, ranks, cases, expert_layers=points)


def main() -> None:
    parser = record.parser(__doc__ or "")
    parser.add_argument("--model", default="moe-tiny", help="moe-tiny, qwen3-30b-a3b, or a config.json with experts")
    parser.add_argument("--dtype", default="fp32", choices=COMPUTE)
    parser.add_argument("--tokens", type=int, default=256, help="of each rank")
    parser.add_argument("--traffics", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--calls", type=int, default=5, help="in a row, a sample")
    arguments = parser.parse_args()
    group.run(work, arguments, record.device(arguments))


if __name__ == "__main__":
    main()
