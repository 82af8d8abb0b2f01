"""A record of several ranks with something of every kind: what the report's tests draw."""

from __future__ import annotations

from serveproof.distributed_records import (
    CollectivePoint,
    ExpertLayerPoint,
    ExpertLoadPoint,
    HandOverPoint,
    PeerMatrix,
    RankedCase,
    RankedFigure,
    RankedRecord,
)
from serveproof.results import Estimate
from tests.report import fake_results


def near(value: float, unit: str = "ms") -> Estimate:
    return Estimate(value, 0.9 * value, 1.1 * value, unit)


def record(text: str = "") -> RankedRecord:
    return RankedRecord(
        script="multi_gpu_validation",
        hardware="2x_h200",
        machine=f"NVIDIA H200{text}",
        device="cuda",
        world=2,
        nodes=1,
        backend="nccl",
        code_sha="sha",
        config={},
        config_sha="0123",
        cases=[
            RankedCase("all_reduce", {}, "passed", f"exact on 2 ranks{text}"),
            RankedCase("peer_bandwidth", {}, "passed", "", {"of_link": RankedFigure(near(0.93, "fraction"), True)}),
            RankedCase("dead_rank_is_noticed", {}, "failed", "not within 10 s"),
            RankedCase("tensor_parallel_speed", {}, "skipped", "no model was named"),
        ],
        provenance=fake_results.provenance(),
        collectives=[CollectivePoint("all_reduce", by, 8192, near(7, "us"), 1e9) for by in ("nccl", "push")]
        + [CollectivePoint("all_to_all", "nccl", size, near(9, "us"), 2e9) for size in (4096, 8192, 16384)],
        matrix=PeerMatrix([[None, 4.4e11], [4.5e11, None]], 4.77e11, [f"GPU 0: 18 NVLinks active{text}"], "copies"),
        hand_overs=[HandOverPoint(512, 2**20, "symmetric memory", near(1), near(2), near(8), near(4, "x"), True)],
        expert_layers=[
            ExpertLayerPoint(kind, "at_tokens", "grouped", much, 1.2, near(3), 0.4, 1e5, 0.0)
            for kind, much in (("uniform", 1.3), ("zipf", 4.1))
        ],
        expert_loads=[ExpertLoadPoint("zipf", 8, 96, near(400, "tokens/s"), 4.1, 1.4, 16, 6128, 6100, 28)],
        notes=[f"a note{text}"],
    )  # fmt: skip
