"""One decoder, one optimization after another: speed, memory and perplexity of each rung against the first."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import torch
import torch.nn.functional as F

from serveproof.bench import padded
from serveproof.engine.engine import Engine
from serveproof.engine.linear import prepare_
from serveproof.engine.model import Llama, full_attention
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.sequence import Chunk, SamplingParams, Sequence, Step
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.serving_results import Rung

SCORED_AT_ONCE = 128  # pieces of the text: later ones read what earlier ones put into the cache


@dataclass(frozen=True)
class Way:
    """How a rung runs: by the padded batch, or by the engine with settings changed from the rung before."""

    name: str
    added: str
    padded: bool = False
    sdpa: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    reason: str = ""


def ways(device: str) -> list[Way]:
    """The rungs, in order; what a device can't do says why."""
    cpu = device == "cpu"
    return [
        Way("eager", "static batches, one padded cache, attention by matrix products", padded=True),
        Way("SDPA", "torch's scaled_dot_product_attention", padded=True, sdpa=True),
        Way("paged", "pages, continuous batching; a prompt in one piece", changes={"chunked": False}),
        Way(
            "compiled block", "torch.compile of the block that all layers share", changes={"compile_block": True},
            devices=("cuda",), reason="off on a CPU: scripts/engine_benchmark.py --compile measures it",
        ),
        Way("CUDA graphs", "decode steps replayed, a graph a batch bucket", changes={"graphs": True}, devices=("cuda",),
            reason="CUDA graphs need CUDA"),
        Way(
            "fused kernels", "our own kernels in the block's place; steps with prompts by graphs, in pieces",
            changes={"compile_block": False, "fused": True}, devices=("cuda",), reason="they are Triton's, for CUDA",
        ),
        Way("chunked prefill", "prompts in pieces beside the decodes", changes={"chunked": True}),
        Way("prefix cache", "blocks of a beginning seen before are shared", changes={"prefix_caching": True}),
        Way("int8 weights" if cpu else "fp8 weights", "linear layers in 8 bits", weights="int8" if cpu else "fp8"),
        Way("fp8 cache", "keys and values in e4m3, a scale a head", changes={"cache_dtype": "fp8"}),
        Way("speculation", "n-gram drafts, checked in one step", changes={"drafts": 3}),
    ]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What every rung answers: prompts, tokens asked of each, and a text to score."""

    prompts: list[list[int]]
    outputs: list[int]
    text: list[int]

    @property
    def warm(self) -> list[list[int]]:
        """What is answered before anything is timed."""
        return [prompt[:8] for prompt in self.prompts[:2]]


def climb(model: Llama, problem: Problem, base: Settings, meaningful: bool, say: Callable[[str], object]) -> list[Rung]:
    """Every rung in order; the model's weights are packed on the way. meaningful: they are real, so a perplexity says
    something. A rung that fails leaves the next ones without what it would have added."""
    settings = replace(base, prefix_caching=False, graphs=False, compile_block=False, fused=False)
    rungs: list[Rung] = []
    for way in ways(base.device):
        if base.device not in way.devices:
            rungs.append(Rung(way.name, way.added, "skipped", way.reason))
            continue
        try:
            if way.weights:
                prepare_(model, way.weights)
            tried = replace(settings, **way.changes)
            rung = _padded_rung(model, problem, way, base) if way.padded else _engine_rung(model, problem, way, tried)
        except (UserError, RuntimeError, NotImplementedError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            rungs.append(Rung(way.name, way.added, "skipped" if isinstance(error, UserError) else "error", first))
            say(f"{way.name}: {first}")
            continue
        finally:
            if base.device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        settings = tried
        rungs.append(_against(rungs, rung, meaningful))
        say(f"{rung.name}: {rung.output_tokens_per_s:.0f} output tokens/s")
    return rungs


def _against(rungs: list[Rung], rung: Rung, meaningful: bool) -> Rung:
    """The rung with its speedup and its perplexity's change; perplexity of random weights is left out."""
    passed = [one for one in rungs if one.status == "passed"]
    first = passed[0] if passed else rung
    speedup = (rung.output_tokens_per_s or 0.0) / (first.output_tokens_per_s or math.inf)
    if not meaningful:
        return msgspec.structs.replace(rung, speedup=speedup, perplexity=None)
    change = 100 * ((rung.perplexity or math.nan) / (first.perplexity or math.nan) - 1)
    return msgspec.structs.replace(rung, speedup=speedup, perplexity_change_percent=change)


def weight_bytes(model: Llama) -> int:
    """Bytes of all parameters, and of what packed layers hold instead."""
    seen = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor):
                seen[value.data_ptr()] = value.nbytes
    return sum(seen.values())


def _padded_rung(model: Llama, problem: Problem, way: Way, base: Settings) -> Rung:
    batch = base.max_running
    padded.generate(model, problem.warm, [2] * len(problem.warm), batch, way.sdpa)
    started = time.perf_counter()
    answers = padded.generate(model, problem.prompts, problem.outputs, batch, way.sdpa)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    padded.generate(model, problem.prompts, [1] * len(problem.prompts), batch, way.sdpa)
    prefill_s = time.perf_counter() - started
    tokens_L = torch.tensor(problem.text, device=model.embed_tokens.weight.device)
    with torch.inference_mode():
        hidden_LD = model(tokens_L, torch.arange(len(tokens_L), device=tokens_L.device), full_attention(1))
        nll = F.cross_entropy(model.logits(hidden_LD[:-1]).float(), tokens_L[1:])
    longest = max(map(len, problem.prompts)) + max(problem.outputs)
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return Rung(
        way.name,
        way.added,
        "passed",
        output_tokens_per_s=sum(map(len, answers)) / seconds,
        prefill_tokens_per_s=sum(map(len, problem.prompts)) / prefill_s,
        weight_bytes=weight_bytes(model),
        cache_bytes=min(batch, len(problem.prompts)) * longest * per_token * model.embed_tokens.weight.itemsize,
        perplexity=math.exp(float(nll)),
        steps=-(-len(problem.prompts) // batch) * max(problem.outputs),
    )


def _engine_rung(model: Llama, problem: Problem, way: Way, settings: Settings) -> Rung:
    engine = start_with(model, settings)
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in problem.outputs]
    engine.generate(problem.warm, SamplingParams(max_tokens=2, ignore_eos=True))
    before, started = engine.steps, time.perf_counter()
    done = engine.generate(problem.prompts, params)
    seconds, steps = time.perf_counter() - started, engine.steps - before
    engine.blocks.forget_kept()  # no prefix of the timed run
    started = time.perf_counter()
    engine.generate(problem.prompts, SamplingParams(max_tokens=1, ignore_eos=True))
    prefill_s = time.perf_counter() - started
    runner = engine.runner
    assert isinstance(runner, ModelRunner)  # noqa: S101 (told to mypy)
    per_block = runner.cache.pool.nbytes // runner.cache.blocks
    pages = sum(-(-(len(p) + n) // settings.page_size) for p, n in zip(problem.prompts, problem.outputs, strict=True))
    return Rung(
        way.name,
        way.added,
        "passed",
        output_tokens_per_s=sum(len(one.tokens) for one in done) / seconds,
        prefill_tokens_per_s=sum(map(len, problem.prompts)) / prefill_s,
        weight_bytes=weight_bytes(model),
        cache_bytes=min(pages, runner.cache.blocks) * per_block,
        perplexity=math.exp(score(engine, problem.text)),
        steps=steps,
    )


@torch.inference_mode()
def score(engine: Engine, text: list[int]) -> float:
    """Mean NLL in nats of a text's tokens after the first, through the engine's weights, cache and attention.

    The text goes in pieces of SCORED_AT_ONCE tokens, so most of what attention reads comes from the cache.
    """
    runner, blocks = engine.runner, engine.blocks
    assert isinstance(runner, ModelRunner)  # noqa: S101 (told to mypy)
    sequence = Sequence("score", list(text), len(text), SamplingParams(), slot=0)
    if not blocks.grow(sequence, len(text)):
        raise UserError(f"a text of {len(text)} tokens does not fit into the cache; give a shorter one")
    total = 0.0
    for start in range(0, len(text), SCORED_AT_ONCE):
        chunk = Chunk(sequence, start, min(SCORED_AT_ONCE, len(text) - start), False)
        _, tensors, _ = runner.tensors(Step((chunk,)))
        runner.attention.plan(tensors)
        hidden_ND = runner.forward(tensors.tokens_N, tensors.positions_N)
        targets = torch.tensor(text[start + 1 : start + chunk.length + 1], device=hidden_ND.device)
        logits_NV = runner.model.logits(hidden_ND[: len(targets)]).float()
        total += float(F.cross_entropy(logits_NV, targets, reduction="sum"))
    blocks.release(sequence)
    return total / (len(text) - 1)
