"""Records of what precisions and ways of serving cost; serveproof.results reads and writes them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from serveproof.results import Estimate, ModelRecord, Provenance, Record, TextRecord

# What every precision is held against, and is never judged itself.
REFERENCES = ("fp32", "bf16")


class Divergence(Record):
    """How far a way of computing is from the unquantized model (fp32) on the same tokens of the same context.

    kl: mean over tokens of KL(fp32 || this) in nats. top1_agreement: share of tokens whose most likely next token is
    the same, in percent. Standard errors are over windows.
    """

    kl: Estimate
    kl_standard_error: float
    top1_agreement: Estimate
    top1_standard_error: float
    tokens: int


class PrecisionResult(Record):
    """One precision's perplexity, and its paired differences per token (nats) with standard errors over windows.

    relative_to_bf16: perplexity / bf16 perplexity - 1 in percent, with its interval; what the accuracy gate judges.
    """

    precision: str
    description: str
    compute_dtype: str
    weight_bytes: int
    nll_nats_per_token: float
    perplexity: float
    delta_to_fp32: Estimate
    delta_to_fp32_standard_error: float
    relative_to_bf16: Estimate
    tokens_per_s: float
    divergence: Divergence | None = None


class GreedyCheck(Record):
    """Greedy tokens on fixed prompts against the choices of the bf16 model without a cache.

    first_divergence: a prompt each, the number of equal tokens before the first other one; None where all are equal.
    largest_gap_nats: at those first other tokens, how much less likely the model holds them than its own choice; near 0
    is a tie. draft_tokens: accepted drafts among the tokens.
    """

    prompts: int
    tokens: int
    identical: int
    first_divergence: list[int | None]
    largest_gap_nats: float
    draft_tokens: int = 0


class ServedPath(Record):
    """One way of serving, scored through the engine. Figures only where status is passed.

    settings: what differs from the engine's usual ones. scored: which tokens the perplexity is of. relative_to_bf16: to
    the bf16 model without a cache on the same tokens. exact: it computes what that model computes, in another order.
    """

    path: str
    description: str
    settings: dict[str, Any]
    exact: bool
    status: Literal["passed", "skipped", "error"]
    reason: str = ""
    scored: str = ""
    tokens: int = 0
    perplexity: float | None = None
    relative_to_bf16: Estimate | None = None
    divergence: Divergence | None = None
    greedy: GreedyCheck | None = None
    seconds: float = 0.0


class Sensitivity(Record):
    """What one kind of projection of one layer costs quantized alone: mean KL(fp32 || this), nats a token."""

    layer: int
    kind: str
    kl_nats: float


class SensitivityMap(Record):
    """Every layer and kind of projection by itself in `precision`, on `tokens` tokens."""

    precision: str
    tokens: int
    cells: list[Sensitivity]


class PerplexityRecord(Record):
    """results/{hardware}/perplexity.json; per-token NLLs lie beside it in perplexity.parquet.

    perplexity.parquet columns: precision str, window i64, position i64, token i64, nll_nats f32.
    left_out: precisions that this device has no kernel for, with the reason. served: ways of serving, in windows of
    served_window_tokens with stride served_stride_tokens.
    """

    hardware: str
    model: ModelRecord
    text: TextRecord
    window_tokens: int
    stride_tokens: int
    tokens: int
    windows: int
    precisions: list[PrecisionResult]
    seconds: float
    left_out: dict[str, str] = msgspec.field(default_factory=dict)
    served: list[ServedPath] = msgspec.field(default_factory=list)
    served_window_tokens: int = 0
    served_stride_tokens: int = 0
    sensitivity: SensitivityMap | None = None
    provenance: Provenance | None = None
