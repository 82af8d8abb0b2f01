"""One request as the engine carries it, and what the scheduler asks the model runner to compute in one step.

The host may be a step ahead of the device: a token that a step in flight will sample stands as PLACEHOLDER at the end
of `tokens` until the step's result is committed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

PLACEHOLDER = -1


class Status(Enum):
    """Where a request is. FINISHED has a finish_reason."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED = "finished"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a request's tokens; temperature 0 is greedy. Names and meaning are vLLM's and OpenAI's."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None


@dataclass(eq=False)
class Sequence:
    """A request and its state. `tokens`: prompt and output; `computed`: leading tokens whose K and V are in the cache.

    `computed` counts those that a step in flight will have written. `blocks`: the block table, device block numbers in
    order. `slot`: this sequence's row in the runner's per-sequence device tensors (last token, seed), while RUNNING.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    tenant: str = "default"
    priority: int = 0
    arrival_s: float = 0.0
    ttft_target_s: float | None = None
    status: Status = Status.WAITING
    finish_reason: str | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1

    @property
    def output_length(self) -> int:
        """Tokens generated, those in flight included."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class Chunk:
    """Compute tokens[start : start + length] of a sequence, then, if `samples`, the token after them.

    drafts: tokens guessed by the n-gram proposer, computed after those `length`; the runner returns the accepted ones
    and one more. `context`: start + length, what attention sees at the chunk's last token (drafts not counted).
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @property
    def context(self) -> int:
        """Tokens in the cache after this chunk, drafts not counted."""
        return self.start + self.length


@dataclass(frozen=True)
class Step:
    """One forward pass: decode chunks (length 1) first, then prefill chunks.

    swap_out: (device block, host block) copied before anything else, swap_in: (host block, device block) after that.
    """

    chunks: tuple[Chunk, ...]
    swap_out: tuple[tuple[int, int], ...] = ()
    swap_in: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sampled:
    """What one chunk that samples gave: one token, or with drafts the accepted ones and one more.

    logprobs: a token each, {token id: log-probability} of the chosen token and the `logprobs` most likely ones.
    error: set if this request alone failed (its logits were not finite); tokens is empty then.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...] = ()
    error: str | None = None
