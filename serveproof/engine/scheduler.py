"""What to compute in the next step: continuous batching under a token budget, prompts in chunks beside the decodes.

Orca (Yu et al., OSDI 2022) for iteration-level scheduling, Sarathi-Serve (Agrawal et al., arXiv 2403.02310) for chunked
prefill, vLLM (Kwon et al., arXiv 2309.06180) for paging and preemption. A step costs work for the running sequences
only, however many wait. It runs on the host alone and knows nothing of tensors.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from serveproof.engine.block_manager import BlockManager
from serveproof.engine.policies import Policy
from serveproof.engine.sequence import PLACEHOLDER, Chunk, Sampled, Sequence, Status, Step
from serveproof.errors import UserError

Propose = Callable[[list[int], int], tuple[int, ...]]


@dataclass(frozen=True)
class Limits:
    """max_running sequences at a time, token_budget of a step, max_model_len of a sequence, drafts a sequence and step.

    chunked: long prompts are computed in pieces as the budget allows, beside the decodes; else a prompt is one piece,
    in a step of prompts that goes before the decodes, alone if it must be.
    swap: a preempted sequence's blocks go to host memory while there is room there; else they are computed again.
    """

    max_running: int
    token_budget: int
    max_model_len: int
    chunked: bool = True
    swap: bool = False
    drafts: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for limits with which nothing could run."""
        if self.max_running < 1 or self.token_budget < self.max_running * (1 + self.drafts):
            raise UserError(
                f"token_budget {self.token_budget} is less than a token (and {self.drafts} drafts) for each of "
                f"max_running {self.max_running} sequences; raise the one or lower the other"
            )


class Scheduler:
    """Queues, blocks and slots. `schedule` may be called while one earlier step is not committed yet."""

    def __init__(
        self, limits: Limits, blocks: BlockManager, policy: Policy, stop_ids: frozenset[int], propose: Propose
    ) -> None:
        self.limits, self.blocks, self.policy, self.stop_ids, self.propose = limits, blocks, policy, stop_ids, propose
        self.running: list[Sequence] = []  # by rank: those that come first are preempted last
        self.waiting = 0
        self.slots = list(range(limits.max_running))[::-1]
        self.preemptions = self.arrivals = 0
        self._out: list[tuple[int, int]] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a request. UserError when it is empty, too long for the model, or could never fit in the cache."""
        length, limits = len(sequence.tokens), self.limits
        if not length:
            raise UserError("the prompt is empty; send one token at least")
        if length >= limits.max_model_len:
            raise UserError(
                f"the prompt has {length} tokens, the model takes {limits.max_model_len} with one to generate; "
                "shorten it"
            )
        sequence.limit = min(length + sequence.params.max_tokens, limits.max_model_len)
        needed = self.blocks.pages(sequence.limit - 1)  # the last token is never computed
        if needed > self.blocks.usable:
            raise UserError(
                f"the request needs {needed} cache blocks of {self.blocks.page_size} tokens for prompt and max_tokens, "
                f"the cache has {self.blocks.usable}; lower max_tokens, shorten the prompt or enlarge the cache"
            )
        sequence.order = self.arrivals
        self.arrivals += 1
        self.waiting += 1
        self.policy.push(sequence)

    def schedule(self) -> Step | None:
        """The next step, or None when there is nothing to compute before another step is committed."""
        left = self.limits.token_budget
        self._out = []
        swapped_in: list[tuple[int, int]] = []
        decodes: list[Chunk] = []
        prefills: list[Chunk] = []
        pending, chunked = True, self.limits.chunked
        if chunked:
            left, pending = self._decode(decodes, left)
        for sequence in self.running if pending else ():
            if left and len(sequence.tokens) - sequence.computed > 1:
                left -= self._prefill(prefills, sequence, left, alone=not (decodes or prefills))
        while left and self.slots and self.waiting:
            admitted = self._admit(left, alone=not (decodes or prefills))
            if admitted is None:
                break
            sequence, copies = admitted
            swapped_in += copies
            if len(sequence.tokens) - sequence.computed == 1:
                self._append_decode(decodes, sequence)
                left -= 1
            else:
                left -= self._prefill(prefills, sequence, left, alone=not (decodes or prefills))
        if not (chunked or decodes or prefills):
            self._decode(decodes, left)
        chunks = decodes + prefills
        if not (chunks or self._out):
            return None
        clean, self.blocks.dirty = tuple(self.blocks.dirty), []
        return Step(tuple(chunks), tuple(self._out), tuple(swapped_in), clean)

    def commit(self, step: Step, results: list[Sampled]) -> list[Sequence]:
        """Take in what a step sampled, a result for each chunk that samples; the sequences that it finished."""
        finished = []
        tenants: list[str] = []  # one for each token
        remaining = iter(results)
        page, keep, stop_ids = self.blocks.page_size, self.blocks.prefix_caching, self.stop_ids
        plain, counted, ended = not self.limits.drafts, self.policy.counts_service, Status.FINISHED
        for chunk in step.chunks:
            sequence = chunk.sequence
            result = next(remaining) if chunk.samples else None
            if sequence.status is ended:
                continue
            if plain and result is not None and result.error is None:
                # one token that ends nothing: what nearly every sequence of nearly every step gets
                place, token, params = chunk.start + chunk.length, result.tokens[0], sequence.params
                stops = (token in stop_ids and not params.ignore_eos) or token in params.stop_token_ids
                if not stops and place + 1 < sequence.limit:
                    sequence.tokens[place] = token
                    if counted:
                        tenants.append(sequence.tenant)
                    if keep and place // page > len(sequence.keys):
                        self._publish(sequence, place)
                    continue
            if result is None:
                self._publish(sequence, chunk.context)
            elif result.error is not None:
                self.blocks.discard(sequence)
                self.finish(sequence, "error")
                finished.append(sequence)
            elif self._accept(sequence, chunk, result.tokens):
                finished.append(sequence)
        for tenant, tokens in Counter(tenants).items():
            self.policy.served(tenant, 0, tokens)
        return finished

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence in any state, now: its blocks and slot are free for the next step."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._leave(sequence)
        else:
            self.waiting -= 1
            self.blocks.drop_host(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
        while sequence.tokens and sequence.tokens[-1] == PLACEHOLDER:
            sequence.tokens.pop()

    def _decode(self, chunks: list[Chunk], left: int) -> tuple[int, bool]:
        """A token for every running sequence whose other tokens are computed.

        The budget that is left, and whether others may have tokens to compute.
        """
        page, grow, running = self.blocks.page_size, self.blocks.grow, self.running
        speculates, index, pending = self.limits.drafts > 0, 0, False
        while index < len(running):
            sequence = running[index]
            index += 1
            length = len(sequence.tokens)
            if length - sequence.computed != 1 or length >= sequence.limit:
                pending = pending or length - sequence.computed > 1
                continue
            drafts = self._drafts(sequence, left) if speculates else ()
            if length > len(sequence.blocks) * page and not grow(sequence, length):
                index = self._make_room(sequence, length, index)
                if sequence.status is not Status.RUNNING:
                    continue
            chunks.append(Chunk(sequence, length - 1, 1, True, drafts))
            if not speculates:
                sequence.tokens.append(PLACEHOLDER)
            sequence.computed = length
            left -= 1 + len(drafts)
        return left, pending

    def _append_decode(self, chunks: list[Chunk], sequence: Sequence) -> None:
        """A token for a sequence that came back from the host; `_admit` has seen to its block."""
        length = len(sequence.tokens)
        chunks.append(Chunk(sequence, length - 1, 1, True))
        sequence.computed = length
        if not self.limits.drafts:
            sequence.tokens.append(PLACEHOLDER)

    def _drafts(self, sequence: Sequence, left: int) -> tuple[int, ...]:
        """Guesses at the tokens after the one to compute, as many as budget, limit and blocks allow."""
        length = len(sequence.tokens)
        most = min(self.limits.drafts, left - 1, sequence.limit - length - 1)
        drafts = self.propose(sequence.tokens, most) if most > 0 else ()
        return drafts if self.blocks.grow(sequence, length + len(drafts)) else ()

    def _prefill(self, chunks: list[Chunk], sequence: Sequence, left: int, alone: bool) -> int:
        """The next piece of a sequence's uncomputed tokens; what it took of the budget."""
        pending = len(sequence.tokens) - sequence.computed
        if sequence.tokens[-1] == PLACEHOLDER:
            return 0
        length = min(pending, left)
        if length < pending and not self.limits.chunked:
            if not alone:
                return 0
            length = pending
        end = sequence.computed + length
        if not self.blocks.grow(sequence, end):
            return 0  # what decodes now will finish, or be preempted, and leave its blocks
        samples = end == len(sequence.tokens)
        chunks.append(Chunk(sequence, sequence.computed, length, samples))
        self.policy.served(sequence.tenant, length, 0)
        sequence.computed = end
        if samples and not self.limits.drafts:
            sequence.tokens.append(PLACEHOLDER)
        return min(length, left)

    def _admit(self, left: int, alone: bool) -> tuple[Sequence, tuple[tuple[int, int], ...]] | None:
        """Let the policy's next sequence run, if its tokens so far fit; copies from the host for a swapped one."""
        sequence = self.policy.peek()
        if sequence is None or sequence.tokens[-1] == PLACEHOLDER:
            return None
        copies: tuple[tuple[int, int], ...] = ()
        if sequence.status is Status.SWAPPED:
            if self.blocks.pages(len(sequence.tokens)) > self.blocks.available:
                return None
            copies = self.blocks.swap_in(sequence)
            self.blocks.grow(sequence, len(sequence.tokens))
        else:
            # a prompt that is scored needs the hidden states of all its tokens
            scored = sequence.params.prompt_logprobs is not None
            found, keys = ([], []) if scored else self.blocks.find(sequence.tokens)
            fresh = self.blocks.pages(len(sequence.tokens)) - len(found)
            pending = len(sequence.tokens) - len(found) * self.blocks.page_size
            if fresh > self.blocks.available - self.blocks.unused(found):
                return None
            if not self.limits.chunked and pending > left and not alone:
                return None
            self.blocks.share(sequence, found, keys)
            sequence.computed = len(found) * self.blocks.page_size
            # all at once, so that what is admitted can be computed
            self.blocks.grow(sequence, len(sequence.tokens))
        self.policy.pop()
        self.waiting -= 1
        sequence.status, sequence.slot = Status.RUNNING, self.slots.pop()
        insort(self.running, sequence, key=lambda one: one.rank)
        return sequence, copies

    def _make_room(self, sequence: Sequence, tokens: int, index: int) -> int:
        """Preempt the last by rank until `sequence` has blocks for so many tokens, or is the last itself.

        Those before `index` have their chunk in this step and are no victims; the index to go on with.
        """
        while not self.blocks.grow(sequence, tokens):
            victim = self.running[-1] if len(self.running) > index else sequence
            self._preempt(victim)
            if victim is sequence:
                return index - 1
        return index

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        if self.limits.swap and len(self.blocks.free_host) >= len(sequence.blocks):
            self._out += self.blocks.swap_out(sequence)
            sequence.status = Status.SWAPPED
        else:
            sequence.status, sequence.computed = Status.WAITING, 0
        self._leave(sequence)
        self.waiting += 1
        self.policy.push(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Blocks and slot of a sequence that no longer runs."""
        self.blocks.release(sequence)
        self.slots.append(sequence.slot)
        sequence.slot = -1

    def _publish(self, sequence: Sequence, known: int) -> None:
        if sequence.status is Status.RUNNING and known <= sequence.computed:
            self.blocks.publish(sequence, known)

    def _accept(self, sequence: Sequence, chunk: Chunk, tokens: tuple[int, ...]) -> bool:
        """Put sampled tokens in their place; True if that ended the sequence."""
        place = chunk.context
        if self.limits.drafts:
            sequence.computed += len(tokens) - 1 if sequence.status is Status.RUNNING else 0
        for index, token in enumerate(tokens):
            if place + index < len(sequence.tokens):
                sequence.tokens[place + index] = token
            else:
                sequence.tokens.append(token)
            self.policy.served(sequence.tenant, 0, 1)
            stopped = token in sequence.params.stop_token_ids or (
                token in self.stop_ids and not sequence.params.ignore_eos
            )
            if stopped or place + index + 1 >= sequence.limit:
                self._publish(sequence, place + index)
                del sequence.tokens[place + index + 1 :]
                self.finish(sequence, "stop" if stopped else "length")
                return True
        self._publish(sequence, place + len(tokens) - 1)
        return False
