"""Records of what an engine did with requests; serveproof.results has the rest and reads and writes them all."""

from __future__ import annotations

from typing import Literal

from serveproof.results import Provenance, Record


class EngineLoad(Record):
    """Requests through an engine, all there at the start. ideal_s: the sum over its steps of what each takes at least
    by the measured ceilings; ttft is from the common start."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    output_tokens_per_s: float
    steps: int
    ideal_s: float
    roofline_fraction: float
    ttft_p50_ms: float
    tpot_p50_ms: float | None
    preemptions: int


class PeerLoad(Record):
    """The same requests through another engine, or why there is no figure."""

    name: str
    version: str
    output_tokens: int
    seconds: float | None
    output_tokens_per_s: float | None
    reason: str = ""


class EngineRecord(Record):
    """What scripts/engine_benchmark.py measured. weights_read_ms: the weights' bytes over the measured bandwidth.

    runs: repetitions of the load, in order; prefill_flops_fraction: of the measured matrix rate.
    """

    hardware: str
    machine: str
    model: str
    dtype: str
    weights: str
    cache_dtype: str
    max_running: int
    token_budget: int
    start_s: float
    graph_capture_s: float
    graph_bytes: int
    runs: list[EngineLoad]
    token_ms: float
    weights_read_ms: float
    token_ratio: float
    prefill_tokens: int
    prefill_s: float
    prefill_flops_fraction: float
    peer: PeerLoad | None
    provenance: Provenance


class RankShare(Record):
    """What one rank of a tensor-parallel model holds; vocabulary is [begin, end)."""

    rank: int
    parameters: int
    bytes: int
    query_heads: int
    kv_heads: int
    vocabulary: tuple[int, int]
    cache_bytes: int


class TensorParallelRecord(Record):
    """What scripts/inference_serving_multigpu.py measured. equal: to the tokens of one rank; None: not checked."""

    hardware: str
    world: int
    backend: str
    model: str
    dtype: str
    shares: list[RankShare]
    requests: int
    prefill_tokens: int
    prefill_s: float
    token_ms: float
    output_tokens_per_s: float
    equal: bool | None
    provenance: Provenance


class Rung(Record):
    """One step of the ladder: every optimization up to this one. Figures only where status is passed.

    weight_bytes and cache_bytes: what they take; perplexity of a fixed text through this rung's weights and cache.
    """

    name: str
    added: str
    status: Literal["passed", "skipped", "error"]
    reason: str = ""
    output_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    speedup: float | None = None
    weight_bytes: int = 0
    cache_bytes: int = 0
    perplexity: float | None = None
    perplexity_change_percent: float | None = None
    steps: int = 0


class LadderRecord(Record):
    """What scripts/inference_optimizations_blackwell.py measured; speedups are against the first rung."""

    hardware: str
    machine: str
    model: str
    dtype: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    rungs: list[Rung]
    provenance: Provenance
