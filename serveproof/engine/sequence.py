"""One request as the engine carries it, and what the scheduler asks the model runner to compute in one step.

The host may be a step ahead of the device: a token that a step in flight will sample stands as PLACEHOLDER at the end
of `tokens` until the step's result is committed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from serveproof.errors import UserError

PLACEHOLDER = -1
MOST_LOGPROBS = 20


class Status(Enum):
    """Where a request is. FINISHED has a finish_reason."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED = "finished"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a request's tokens; temperature 0 is greedy. Names and meaning are vLLM's and OpenAI's.

    prompt_logprobs: as logprobs, of the prompt's own tokens after the first; such a prompt is computed whole.
    """

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
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError naming the first parameter that is out of range, what it is, and what it may be."""
        ranges = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is off"),
            ("stop", all(self.stop), "strings that are not empty"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2^63 - 1, or none"),
            ("logprobs", _few(self.logprobs), f"from 0 to {MOST_LOGPROBS}"),
            ("prompt_logprobs", _few(self.prompt_logprobs), f"from 0 to {MOST_LOGPROBS}"),
        )
        for name, good, mend in ranges:
            if not good:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {mend}")


def _few(count: int | None) -> bool:
    return count is None or 0 <= count <= MOST_LOGPROBS


@dataclass(eq=False, slots=True)
class Sequence:
    """A request and its state. `tokens`: prompt and output; `computed`: leading tokens whose K and V are in the cache.

    `computed` counts those that a step in flight will have written. `blocks`: the block table, device block numbers in
    order; `host_blocks` while SWAPPED. `keys`: content hashes of the leading full blocks. `slot`: its row in the
    runner's device tensors while RUNNING. `limit`: tokens, prompt included, at which it ends at the latest.
    `rank`: its place by the policy, smaller first; `order`: the number of its arrival. `seed`: of its sampling.
    `prompt_logprobs`: of the prompt's tokens after the first, as far as they are computed, where they were asked for.
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
    host_blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    slot: int = -1
    limit: int = 0
    rank: tuple[float, ...] = ()
    order: int = 0
    seed: int = 0
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)

    @property
    def output_length(self) -> int:
        """Tokens generated, those in flight included."""
        return len(self.tokens) - self.prompt_length


class Chunk(Struct, gc=False):
    """Compute tokens[start : start + length] of a sequence, then, if `samples`, the token after them.

    drafts: tokens guessed by the n-gram proposer, computed after those `length`; the runner returns the accepted ones
    and one more. `context`: start + length, what attention sees at the chunk's last token (drafts not counted). A
    Struct, for hundreds are made a step: 51 ns each, where a dataclass takes 143.
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

    Before that, in this order: `clean` zeroes blocks that a failed sequence left, swap_out copies (device block, host
    block), swap_in (host block, device block).
    """

    chunks: tuple[Chunk, ...]
    swap_out: tuple[tuple[int, int], ...] = ()
    swap_in: tuple[tuple[int, int], ...] = ()
    clean: tuple[int, ...] = ()


class Sampled(Struct, frozen=True):
    """What one chunk that samples gave: one token, or with drafts the accepted ones and one more.

    logprobs: a token each, {token id: log-probability} of the chosen token and the `logprobs` most likely ones.
    error: set if this request alone failed (its logits were not finite); tokens is empty then.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...] = ()
    error: str | None = None
