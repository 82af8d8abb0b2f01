"""Ways of serving, each scored through the engine: what is served is what is scored.

Prompts are the same windows that the model without a cache is scored on. Their scores come from the engine itself (a
request's prompt_logprobs), through its pages, chunks, graphs, weights, cache and ranks. Drafts never touch a prompt, so
speculation is scored on the tokens that its drafts verified.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from serveproof.accuracy_records import ServedPath
from serveproof.bench import ranks
from serveproof.bench.divergence import Reference, Scores, divergence, kl_and_agreement
from serveproof.bench.greedy import ANSWER_TOKENS, PROMPT_TOKENS, answer, held_against
from serveproof.bench.windows import Integers, Window, paired_difference, relative_percent, window_of
from serveproof.engine.config import read_config
from serveproof.engine.engine import Engine
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import check_shares, load_model
from serveproof.engine.model import Llama
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.parallel import SINGLE, Group
from serveproof.engine.sequence import SamplingParams, Sequence
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.orphans import die_with_parent

TOKEN_BUDGET, RUNNING = 128, 4
EAGER = {"fused": False, "graphs": False}
DRAFTS = 3


@dataclass(frozen=True)
class Path:
    """A way of serving: settings beside the usual ones, packed weights. verified: scored on drafts' tokens.

    ranks: numbers of ranks to try, for a model's heads may not divide by the first. exact: the arithmetic is the bf16
    model's, in another order.
    """

    name: str
    description: str
    changes: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    ranks: tuple[int, ...] = ()
    verified: bool = False
    exact: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    reason: str = ""


PATHS = {
    path.name: path
    for path in (
        Path("paged", "pages, each prompt in one piece", {"chunked": False, **EAGER}, exact=True),
        Path("chunked", f"prompts in pieces, {TOKEN_BUDGET} tokens a step", EAGER, exact=True),
        Path("graphs", "fused kernels and CUDA graphs", exact=True, devices=("cuda",), reason="CUDA graphs need CUDA"),
        Path("int8_weights", "int8 weights, packed", weights="int8", devices=("cpu",),
             reason="the engine's int8 is for CPUs"),
        Path("int4_weights", "int4 weights, packed; LM head int8", weights="int4", devices=("cpu",),
             reason="the engine's int4 is for CPUs"),
        Path("fp8_weights", "e4m3 weights and inputs", weights="fp8", devices=("cuda",),
             reason="the engine's fp8 weights are for CUDA; precision fp8_e4m3_dynamic is their arithmetic on a CPU"),
        Path("fp8_cache", "keys and values in e4m3, a scale a head", {"cache_dtype": "fp8"}),
        Path("speculation", f"n-gram drafts, {DRAFTS} at most, checked in one step", {"drafts": DRAFTS},
             verified=True, exact=True),
        Path("tensor_parallel", "tensor parallel by gloo over 2 ranks, or 3", ranks=(2, 3), exact=True,
             devices=("cpu",),
             reason="this job holds one GPU; rule validate_ranks holds logits over ranks against one rank's"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What every path is given: windows of a text to score, and prompts to answer."""

    tokens: Integers
    plan: list[Window]
    prompts: list[list[int]]


def check_paths(names: list[str]) -> None:
    """UserError listing what there is for a name that is none."""
    unknown = [name for name in names if name not in PATHS]
    if unknown:
        raise UserError(f"path {unknown[0]!r} is unknown; there are {', '.join(PATHS)}")


def settings_of(path: Path, problem: Problem, device: str) -> Settings:
    """The engine's settings for a path: room for a few windows at a time, steps shorter than a window."""
    longest = max(window.end - window.begin for window in problem.plan)
    usual = Settings(
        device=device,
        max_running=RUNNING,
        token_budget=TOKEN_BUDGET,
        max_model_len=max(longest + 1, PROMPT_TOKENS + ANSWER_TOKENS),
        prefix_caching=False,
    )
    return replace(usual, **path.changes)


def score_served(engine: Engine, problem: Problem, reference: Reference | None) -> Scores:
    """The engine's own scores of every window's tokens, as bench.perplexity.score gives the model's."""
    count = len(problem.tokens) - 1
    every = reference.every if reference else 1
    nll = np.full(count, np.nan, np.float32)
    kept = -(-count // every)
    kl, agrees = np.full(kept, np.nan, np.float32), np.zeros(kept, np.bool_)

    def on_scored(sequence: Sequence, at: int, logits_RV: Tensor) -> None:
        window = problem.plan[int(sequence.request_id)]
        # index of a scored token: its position in the text less 1
        first = max(window.begin + at, window.score_from) - 1
        first += -first % every
        end = window.begin + at + len(logits_RV) - 1
        if reference is None or first >= end:
            return
        rows_R = torch.arange(first, end, every, device=logits_RV.device)
        both = kl_and_agreement(logits_RV[rows_R + 1 - window.begin - at], reference.logits(rows_R // every))
        places = (rows_R // every).cpu().numpy()
        kl[places], agrees[places] = both[0].cpu().numpy(), both[1].cpu().numpy()

    runner = engine.runner
    assert isinstance(runner, ModelRunner)  # noqa: S101 (told to mypy)
    runner.on_scored = on_scored
    for number, window in enumerate(problem.plan):
        prompt = problem.tokens[window.begin : window.end].tolist()
        engine.add(str(number), prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))
    while engine.busy:
        for output in engine.step():
            if output.error:
                raise RuntimeError(f"window {output.request_id}: {output.error}")
            window = problem.plan[int(output.request_id)]
            for position in range(window.score_from, window.end) if output.prompt_logprobs else ():
                own = output.prompt_logprobs[position - window.begin - 1]
                nll[position - 1] = -own[int(problem.tokens[position])]
    runner.on_scored = None
    if np.isnan(nll).any():
        raise RuntimeError(f"the engine scored {count - int(np.isnan(nll).sum())} of {count} tokens")
    return Scores(nll, kl, agrees, every) if reference else Scores(nll)


def _both(model: Llama, path: Path, problem: Problem, device: str, reference: Reference | None) -> Any:
    engine = start_with(model, settings_of(path, problem, device))
    scores = None if path.verified else score_served(engine, problem, reference)
    return scores, answer(engine, problem.prompts)


def _rank(
    rank: int, world: int, path: Path, directory: str, problem: Problem, reference: Reference, folder: str
) -> None:
    """One rank of a tensor-parallel path; rank 0 leaves what it found in the folder."""
    die_with_parent()
    torch.set_num_threads(1)
    with ranks.meeting(rank, world, "cpu", f"{folder}/store"):
        model = load_model(directory, torch.bfloat16, "cpu", Group(rank, world))
        prepare_(model, path.weights)
        found = _both(model, path, problem, "cpu", reference if rank == 0 else None)
        if rank == 0:
            torch.save(found, f"{folder}/found")


def world_of(path: Path, directory: FilePath) -> int:
    """The first of the path's numbers of ranks that the model can be shared by. UserError where there is none."""
    config, problems = read_config(directory / "config.json"), []
    for world in path.ranks:
        try:
            check_shares(config, Group(0, world))
        except UserError as error:
            problems.append(str(error).partition(";")[0])
        else:
            return world
    raise UserError("; ".join(problems))


def _over_ranks(world: int, path: Path, directory: FilePath, problem: Problem, reference: Reference) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, path, str(directory), problem, reference, folder)
        spawn(_rank, arguments, nprocs=world)
        return torch.load(f"{folder}/found", weights_only=False)


def serve(
    path: Path,
    directory: FilePath,
    problem: Problem,
    plain: Llama,
    plain_scores: Scores,
    reference: Reference,
    device: str,
) -> ServedPath:
    """One path's figures; a path that this device or model can't have is skipped with the reason.

    plain: the bf16 model, fused, with its own scores of the windows; reference: fp32's distributions.
    """
    settings: dict[str, Any] = path.changes | ({"weights": path.weights} if path.weights else {})
    record = ServedPath(path.name, path.description, settings, path.exact, "skipped", path.reason)
    if device not in path.devices:
        return record
    started = time.perf_counter()
    try:
        if path.ranks:
            record.settings["ranks"] = world_of(path, directory)
            scores, answers = _over_ranks(record.settings["ranks"], path, directory, problem, reference)
        else:
            model = plain
            if path.weights:
                model = load_model(directory, torch.bfloat16, device, SINGLE)
                prepare_(model, path.weights)
            scores, answers = _both(model, path, problem, device, reference)
        greedy, plain_nll = held_against(plain, problem.prompts, answers)
    except UserError as error:
        record.reason = str(error)
        return record
    except Exception as error:
        record.status, record.reason = "error", f"{type(error).__name__}: {error}"
        return record
    record.status, record.reason, record.greedy = "passed", "", greedy
    if path.verified:
        if not answers.drafts:
            record.status, record.reason = "error", "no draft was accepted, so none was verified"
            return record
        record.scored = "its own greedy tokens, by the steps that verified its drafts; prompts don't go through drafts"
        nll, plain_of = (np.concatenate(one).astype(np.float32) for one in (answers.nll_nats, plain_nll))
        window = np.repeat(np.arange(len(answers.tokens)), [len(own) for own in answers.tokens])
    else:
        record.scored, nll, plain_of = "the text's windows, as prompts", scores.nll_nats, plain_scores.nll_nats
        window = window_of(problem.plan)
        record.divergence = divergence(scores, window)
    record.relative_to_bf16 = relative_percent(paired_difference(nll, plain_of, window)[0])
    record.tokens, record.perplexity = len(nll), float(np.exp(nll.mean(dtype=np.float64)))
    record.seconds = time.perf_counter() - started
    return record


def serve_all(
    names: list[str],
    directory: FilePath,
    problem: Problem,
    scored: Callable[[Llama], Scores],
    reference: Reference,
    device: str,
    say: Callable[[str], object] = lambda _: None,
) -> list[ServedPath]:
    """Every named path. scored: the scores of the plain bf16 model on the problem's windows."""
    check_paths(names)
    plain = load_model(directory, torch.bfloat16, device)
    plain_scores = scored(plain)
    prepare_(plain, None)
    found = []
    for name in names:
        found.append(serve(PATHS[name], directory, problem, plain, plain_scores, reference, device))
        say(name)
    return found
