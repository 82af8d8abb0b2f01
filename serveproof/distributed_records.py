"""Records of what several ranks did together; serveproof.results has the rest and reads and writes them all."""

from __future__ import annotations

from typing import Any

import msgspec

from serveproof.results import Estimate, Provenance, Record, Status


class RankedFigure(Record):
    """One judged figure. ratio: it compares two things on one machine, so that it means something on a CPU too."""

    estimate: Estimate
    higher_is_better: bool
    ratio: bool = False


class RankedCase(Record):
    """One thing that must hold between ranks, or that they were timed at. Figures exist only where it passed.

    reason: why it was skipped or failed; of a case that passed, what was compared with what.
    """

    case: str
    axes: dict[str, Any]
    status: Status
    reason: str = ""
    figures: dict[str, RankedFigure] = msgspec.field(default_factory=dict)


class CollectivePoint(Record):
    """One collective at one size, the whole tensor's bytes. bus bandwidth: nccl-tests', what each rank must move at
    least over the time; for n ranks 2 (n - 1) / n of an all-reduce's tensor."""

    collective: str
    by: str
    bytes: int
    time: Estimate
    bus_bandwidth_bytes_per_s: float


class PeerMatrix(Record):
    """Bandwidth from rank (row) to rank (column) in bytes/s; None where it was not measured (another node, itself).

    limit_bytes_per_s: what the links of one GPU can carry one way, None where nobody tells. links: a line a GPU.
    """

    bandwidth_bytes_per_s: list[list[float | None]]
    limit_bytes_per_s: float | None
    links: list[str]
    how: str


class HandOverPoint(Record):
    """A prompt handed over from a prefill worker, against computing it again. Times until the decode worker's first
    token; bytes: keys and values that were sent; equal: the tokens of both ways."""

    prompt_tokens: int
    bytes: int
    transport: str
    transfer: Estimate
    handed_over: Estimate
    recomputed: Estimate
    speedup: Estimate
    equal: bool


class ExpertLayerPoint(Record):
    """One way to run a layer of experts under one traffic. imbalance: the busiest expert's, or rank's, rows over the
    mean; exchange: of the time, what moved rows between ranks; error: relative, against every expert on one rank."""

    traffic: str
    placement: str
    batching: str
    imbalance: float
    rank_imbalance: float
    time: Estimate
    exchange_share: float
    tokens_per_s: float
    error: float


class ExpertLoadPoint(Record):
    """A decoder with experts serving requests under one traffic. rows: those that the router chose, over all steps and
    layers; computed: those that experts computed. dropped is their difference."""

    traffic: str
    requests: int
    output_tokens: int
    output_tokens_per_s: Estimate
    imbalance: float
    rank_imbalance: float
    active_experts: int
    rows: int
    computed: int
    dropped: int


class RankedRecord(Record):
    """results/{hardware}/ranks/{script}.json: one run of one script over several ranks.

    config_sha: the hash that all ranks were found to share at the start. nodes: machines by torchrun's count.
    """

    script: str
    hardware: str
    machine: str
    device: str
    world: int
    nodes: int
    backend: str
    code_sha: str
    config: dict[str, Any]
    config_sha: str
    cases: list[RankedCase]
    provenance: Provenance
    collectives: list[CollectivePoint] = msgspec.field(default_factory=list)
    matrix: PeerMatrix | None = None
    hand_overs: list[HandOverPoint] = msgspec.field(default_factory=list)
    expert_layers: list[ExpertLayerPoint] = msgspec.field(default_factory=list)
    expert_loads: list[ExpertLoadPoint] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)
