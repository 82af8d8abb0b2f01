"""A batch of requests through the engine, and the least time that its steps could have taken on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median_high

import torch

from serveproof.engine.config import ModelConfig
from serveproof.engine.engine import Engine, Pending, Runner
from serveproof.engine.sequence import SamplingParams, Step
from serveproof.results import Ceilings
from serveproof.serving_results import EngineLoad


@dataclass(frozen=True)
class Load:
    """Prompts of random tokens, and how many tokens each is to be answered with, whatever they are."""

    prompts: list[list[int]]
    outputs: list[int]


def make_load(
    requests: int, prompt_range: tuple[int, int], output_range: tuple[int, int], vocabulary: int, seed: int
) -> Load:
    """Lengths uniform in the closed ranges, tokens uniform in the vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int) -> list[int]:
        drawn: list[int] = torch.randint(low, high + 1, (count,), generator=generator).tolist()
        return drawn

    lengths, outputs = draw(*prompt_range, requests), draw(*output_range, requests)
    return Load([draw(0, vocabulary - 1, length) for length in lengths], outputs)


@dataclass(frozen=True)
class ModelWork:
    """What a forward pass of a model takes: bytes of the weights that every step reads, FLOPs a token without and with
    the LM head, FLOPs and bytes of attention a token of context, all layers together."""

    weight_bytes: float
    token_flops: float
    head_flops: float
    context_flops: float
    context_bytes: float


def work_of(config: ModelConfig, weight_itemsize: float, head_itemsize: float, cache_itemsize: float) -> ModelWork:
    """The counts of a dense model; a mixture of experts is counted by the experts that a token chooses."""
    D, E = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.intermediate_size
    chosen = 1
    if config.experts is not None:
        width, chosen = config.experts.intermediate_size, config.experts.per_token
    layer = D * (heads + 2 * kv_heads) * E + heads * E * D + chosen * 3 * D * width
    layers = config.num_hidden_layers
    return ModelWork(
        weight_bytes=layers * layer * weight_itemsize + config.vocab_size * D * head_itemsize,
        token_flops=2.0 * layers * layer,
        head_flops=2.0 * config.vocab_size * D,
        context_flops=4.0 * layers * heads * E,
        context_bytes=2.0 * layers * kv_heads * E * cache_itemsize,
    )


@dataclass
class Counting:
    """A runner that counts each step's least time before it launches it."""

    runner: Runner
    work: ModelWork
    ceilings: Ceilings
    dtype: str
    ideal_s: float = 0.0
    steps: int = 0

    def launch(self, step: Step) -> Pending:
        """Launch, and add the larger of FLOPs over the measured rate and bytes over the measured bandwidth."""
        tokens = seen = read = sampled = 0
        for chunk in step.chunks:
            count = chunk.length + len(chunk.drafts)
            tokens += count
            # token i of the chunk sees start + i + 1 tokens
            seen += count * chunk.start + count * (count + 1) // 2
            read += chunk.start + count
            sampled += (len(chunk.drafts) + 1) * chunk.samples
        flops = tokens * self.work.token_flops + sampled * self.work.head_flops + seen * self.work.context_flops
        moved = self.work.weight_bytes + read * self.work.context_bytes
        self.ideal_s += max(
            flops / self.ceilings.matmul_flops_per_s[self.dtype], moved / self.ceilings.read_bandwidth_bytes_per_s
        )
        self.steps += 1
        return self.runner.launch(step)


@dataclass
class _Marks:
    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0


@dataclass
class _Run:
    seconds: float
    marks: dict[str, _Marks] = field(default_factory=dict)


def _drive(engine: Engine, load: Load) -> _Run:
    started = time.perf_counter()
    marks = {}
    for number, (prompt, count) in enumerate(zip(load.prompts, load.outputs, strict=True)):
        engine.add(str(number), prompt, SamplingParams(max_tokens=count, ignore_eos=True))
        marks[str(number)] = _Marks()
    while engine.busy:
        outputs = engine.step()
        now = time.perf_counter() - started
        for output in outputs:
            mark = marks[output.request_id]
            mark.first_s = mark.first_s or now
            mark.last_s, mark.tokens = now, mark.tokens + len(output.tokens)
    return _Run(time.perf_counter() - started, marks)


def run_load(engine: Engine, load: Load, work: ModelWork, ceilings: Ceilings, dtype: str) -> EngineLoad:
    """All requests at once, to the end. Raises RuntimeError when a request did not give the tokens asked for."""
    counting = Counting(engine.runner, work, ceilings, dtype)
    engine.runner = counting
    try:
        run = _drive(engine, load)
    finally:
        engine.runner = counting.runner
    for number, count in enumerate(load.outputs):
        if run.marks[str(number)].tokens != count:
            raise RuntimeError(f"request {number} gave {run.marks[str(number)].tokens} of {count} tokens")
    tokens = sum(load.outputs)
    marks = list(run.marks.values())
    tpot_s = [(mark.last_s - mark.first_s) / (mark.tokens - 1) for mark in marks if mark.tokens > 1]
    return EngineLoad(
        requests=len(load.prompts),
        prompt_tokens=sum(len(prompt) for prompt in load.prompts),
        output_tokens=tokens,
        seconds=run.seconds,
        output_tokens_per_s=tokens / run.seconds,
        steps=counting.steps,
        ideal_s=counting.ideal_s,
        roofline_fraction=counting.ideal_s / run.seconds,
        ttft_p50_ms=1e3 * median_high([mark.first_s for mark in marks]),
        tpot_p50_ms=1e3 * median_high(tpot_s) if tpot_s else None,
        preemptions=engine.snapshot().preemptions,
    )


def token_ms(engine: Engine, prompt_tokens: int, tokens: int, vocabulary: int) -> float:
    """Median ms from one token to the next of a single request, its first tokens left out."""
    load = make_load(1, (prompt_tokens, prompt_tokens), (tokens, tokens), vocabulary, seed=1)
    engine.add("alone", load.prompts[0], SamplingParams(max_tokens=tokens, ignore_eos=True))
    times = []
    while engine.busy:
        if engine.step():
            times.append(time.perf_counter())
    gaps = [later - before for before, later in pairwise(times[4:])]
    return 1e3 * median_high(gaps)


def prefill_s(engine: Engine, prompt_tokens: int, vocabulary: int, seed: int) -> float:
    """Seconds from adding one prompt to its first token."""
    load = make_load(1, (prompt_tokens, prompt_tokens), (1, 1), vocabulary, seed)
    return _drive(engine, load).seconds
