"""The loop: requests in, steps through the runner, tokens and text out.

With `overlap` the host schedules a step while the device computes the one before: a sampled token's value stays on the
device until the next but one step is launched. Drafts need values, so speculation turns overlap off.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tokenizers import Tokenizer

from serveproof.engine.block_manager import BlockManager
from serveproof.engine.output import TextStream
from serveproof.engine.policies import make_policy
from serveproof.engine.scheduler import Limits, Scheduler
from serveproof.engine.sequence import Sampled, SamplingParams, Sequence, Status, Step
from serveproof.engine.speculation import propose
from serveproof.errors import UserError
from serveproof.nvtx_ranges import span


class Pending(Protocol):
    """A launched step."""

    def result(self) -> list[Sampled]:
        """Wait for it; one result for each chunk that samples, in order."""


class Runner(Protocol):
    """What computes a step: serveproof.engine.model_runner's, or a test's."""

    def launch(self, step: Step) -> Pending:
        """Start a step after all those launched before it."""


@dataclass(frozen=True)
class Output:
    """What one step brought a request. text: what may be shown of it. finish_reason: stop, length, abort or error.

    prompt_logprobs: of the prompt's tokens after the first, with the first output, where they were asked for.
    """

    request_id: str
    tokens: tuple[int, ...]
    text: str = ""
    finish_reason: str | None = None
    logprobs: tuple[dict[int, float], ...] = ()
    error: str | None = None
    prompt_logprobs: tuple[dict[int, float], ...] = ()


@dataclass
class Completion:
    """A whole answer, put together by `generate`."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """How the engine stands: requests running and waiting, blocks used of those there are, counters since the start."""

    running: int
    waiting: int
    used_blocks: int
    blocks: int
    preemptions: int
    prefix_hit_tokens: int
    prefix_asked_tokens: int
    steps: int


class Engine:
    """One model's serving engine; not for several threads at once. Without a tokenizer there is no text."""

    def __init__(
        self,
        runner: Runner,
        blocks: BlockManager,
        limits: Limits,
        policy: str = "first_come",
        stop_ids: tuple[int, ...] = (),
        tokenizer: Tokenizer | None = None,
        overlap: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner, self.blocks, self.tokenizer, self.clock = runner, blocks, tokenizer, clock
        self.scheduler = Scheduler(limits, blocks, make_policy(policy), frozenset(stop_ids), propose)
        self.overlap = overlap and not limits.drafts
        self.requests: dict[str, Sequence] = {}
        self.streams: dict[str, TextStream] = {}
        self.in_flight: tuple[Step, Pending] | None = None
        self.steps = 0

    def add(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        tenant: str = "default",
        priority: int = 0,
        ttft_target_s: float | None = None,
    ) -> None:
        """Queue a request. UserError, and nothing queued, for one that can't be served: the message says why."""
        if request_id in self.requests:
            raise UserError(f"request {request_id!r} is there already; choose another id")
        if params.stop and self.tokenizer is None:
            raise UserError("stop strings need a tokenizer; use stop_token_ids or start the engine with one")
        if self.scheduler.limits.drafts and (params.temperature > 0 or params.repetition_penalty != 1):
            raise UserError("speculation is greedy only; set temperature 0 and repetition_penalty 1, or drafts 0")
        sequence = Sequence(
            request_id=request_id,
            tokens=list(prompt),
            prompt_length=len(prompt),
            params=params,
            tenant=tenant,
            priority=priority,
            arrival_s=self.clock(),
            ttft_target_s=ttft_target_s,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
        )
        self.scheduler.add(sequence)
        self.requests[request_id] = sequence
        if self.tokenizer is not None:
            self.streams[request_id] = TextStream(self.tokenizer, params.stop)

    def abort(self, request_id: str) -> None:
        """Forget a request in any state; its blocks are free at once. An unknown or finished one is no error."""
        sequence = self.requests.pop(request_id, None)
        self.streams.pop(request_id, None)
        if sequence is not None:
            self.scheduler.finish(sequence, "abort")

    @property
    def busy(self) -> bool:
        """Whether a call of `step` has anything to do."""
        return bool(self.requests or self.in_flight)

    def step(self) -> list[Output]:
        """Launch the next step and take in the one that is due; what each request got from it."""
        with span("schedule"):
            step = self.scheduler.schedule()
        launched = None if step is None else (step, self.runner.launch(step))
        self.steps += step is not None
        if self.overlap:
            due, self.in_flight = self.in_flight, launched
        else:
            due = launched
        return [] if due is None else self._take_in(due[0], due[1].result())

    def _take_in(self, step: Step, results: list[Sampled]) -> list[Output]:
        sampling = [chunk for chunk in step.chunks if chunk.samples]
        alive = [chunk.sequence.status is not Status.FINISHED for chunk in sampling]
        self.scheduler.commit(step, results)
        outputs = []
        for chunk, result, was_alive in zip(sampling, results, alive, strict=True):
            if was_alive:
                outputs.append(self._output(chunk.sequence, chunk.context, result))
        return outputs

    def _output(self, sequence: Sequence, place: int, result: Sampled) -> Output:
        """The tokens that count: none after the one that ended it, and no stop token's text."""
        tokens = result.tokens
        if sequence.status is Status.FINISHED:
            tokens = tuple(sequence.tokens[place : place + len(tokens)])
        text = ""
        stream = self.streams.get(sequence.request_id)
        if stream is not None:
            shown = tokens[:-1] if sequence.finish_reason == "stop" else tokens
            text = "".join(stream.push(token) for token in shown)
            if stream.stopped:
                self.scheduler.finish(sequence, "stop")
                sequence.finish_reason = "stop"
            elif sequence.status is Status.FINISHED:
                text += stream.flush()
        if sequence.status is Status.FINISHED:
            self.requests.pop(sequence.request_id, None)
            self.streams.pop(sequence.request_id, None)
        logprobs = result.logprobs[: len(tokens)]
        scored = tuple(sequence.prompt_logprobs) if place == sequence.prompt_length else ()
        return Output(sequence.request_id, tokens, text, sequence.finish_reason, logprobs, result.error, scored)

    def generate(self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[Completion]:
        """Answer all prompts, in their order; the engine must have no other requests."""
        each = params if isinstance(params, list) else [params] * len(prompts)
        ids = [f"generate-{number}" for number in range(len(prompts))]
        for request_id, prompt, own in zip(ids, prompts, each, strict=True):
            self.add(request_id, prompt, own)
        done = {request_id: Completion() for request_id in ids}
        while self.busy:
            for output in self.step():
                completion = done[output.request_id]
                completion.tokens += output.tokens
                completion.text += output.text
                completion.logprobs += output.logprobs
                completion.prompt_logprobs += output.prompt_logprobs
                completion.finish_reason = output.finish_reason or ""
        return [done[request_id] for request_id in ids]

    def snapshot(self) -> Snapshot:
        """How the engine stands now."""
        return Snapshot(
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting,
            used_blocks=self.blocks.usable - self.blocks.available,
            blocks=self.blocks.usable,
            preemptions=self.scheduler.preemptions,
            prefix_hit_tokens=self.blocks.hit_tokens,
            prefix_asked_tokens=self.blocks.asked_tokens,
            steps=self.steps,
        )
