"""Perplexity of a model in several precisions, and what each changes against the unquantized model, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serveproof.accuracy_records import REFERENCES, PrecisionResult
from serveproof.bench.divergence import Reference, Scores, divergence, head_of, kl_and_agreement
from serveproof.bench.windows import Integers, Window, paired_difference, relative_percent, window_of, window_plan
from serveproof.engine.calibration import CALIBRATED, Calibrated, calibrate_, refusal
from serveproof.engine.loader import load_model
from serveproof.engine.model import Llama
from serveproof.engine.quantization import PRECISIONS, Precision, quantize_
from serveproof.errors import UserError

LOGITS_AT_ONCE = 256  # float32 logits of a 49k vocabulary take 200 KB a position
KNOWN: dict[str, Precision | Calibrated] = {**PRECISIONS, **CALIBRATED}


@dataclass(frozen=True)
class Samples:
    """Per scored token, in order: its window, its position in the span, its id; and each precision's scores."""

    window: Integers
    position: Integers
    token: Integers
    scores: dict[str, Scores]

    @property
    def nll_nats(self) -> dict[str, NDArray[np.float32]]:
        """The NLL of every scored token by precision."""
        return {name: scores.nll_nats for name, scores in self.scores.items()}


@torch.inference_mode()
def _pieces(
    model: Llama,
    tokens: Integers,
    plan: list[Window],
    batch_windows: int,
    on_window: Callable[[], object],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index of its first scored token, hidden states [n, D] that predict, targets [n]) of at most LOGITS_AT_ONCE.

    Windows of one shape go through the model `batch_windows` at a time; only the scored positions reach the LM head.
    """
    device = model.embed_tokens.weight.device
    ids_T = torch.as_tensor(tokens, dtype=torch.int64, device=device)
    for batch in _batches(plan, batch_windows):
        hidden_BLD = model.full(torch.stack([ids_T[window.begin : window.end] for window in batch]))
        for window, hidden_LD in zip(batch, hidden_BLD, strict=True):
            # The hidden state at position p predicts token p + 1.
            for begin in range(window.score_from, window.end, LOGITS_AT_ONCE):
                end = min(begin + LOGITS_AT_ONCE, window.end)
                yield begin - 1, hidden_LD[begin - 1 - window.begin : end - 1 - window.begin], ids_T[begin:end]
            on_window()


@torch.inference_mode()
def score(
    model: Llama,
    tokens: Integers,
    plan: list[Window],
    reference: Reference | None = None,
    batch_windows: int = 4,
    on_window: Callable[[], object] = lambda: None,
) -> Scores:
    """NLL of every scored token in the plan's order, log-softmax in float32; against a reference its divergence."""
    nll, kl, agrees = [], [], []
    every = reference.every if reference else 1
    for first, hidden_ND, targets_N in _pieces(model, tokens, plan, batch_windows, on_window):
        logits_NV = model.logits(hidden_ND)
        nll.append(F.cross_entropy(logits_NV.float(), targets_N, reduction="none"))
        if reference is not None:
            skipped = -first % every
            rows = slice((first + skipped) // every, (first + len(targets_N) - 1) // every + 1)
            both = kl_and_agreement(logits_NV[skipped::every], reference.logits(rows))
            kl.append(both[0])
            agrees.append(both[1])
    found = Scores(torch.cat(nll).cpu().numpy(), every=every)
    if reference is not None:
        found.kl_nats, found.agrees = torch.cat(kl).cpu().numpy(), torch.cat(agrees).cpu().numpy()
    return found


def token_nll(
    model: Llama,
    tokens: Integers,
    plan: list[Window],
    batch_windows: int = 4,
    on_window: Callable[[], object] = lambda: None,
) -> NDArray[np.float32]:
    """NLL in nats of every scored token, float32 [scored]."""
    return score(model, tokens, plan, None, batch_windows, on_window).nll_nats


@torch.inference_mode()
def as_reference(
    model: Llama, tokens: Integers, plan: list[Window], every: int, on_window: Callable[[], object] = lambda: None
) -> tuple[Scores, Reference]:
    """The scores of the unquantized model, and what others are held against at every `every`-th scored token."""
    nll, kept = [], []
    for first, hidden_ND, targets_N in _pieces(model, tokens, plan, 4, on_window):
        nll.append(F.cross_entropy(model.logits(hidden_ND).float(), targets_N, reduction="none"))
        kept.append(hidden_ND[-first % every :: every].float())
    return Scores(torch.cat(nll).cpu().numpy()), Reference(torch.cat(kept), head_of(model), every)


def evaluate(
    directory: Path | str,
    tokens: Integers,
    precisions: list[str],
    window_tokens: int,
    stride_tokens: int,
    device: str = "cpu",
    on_window: Callable[[], object] = lambda: None,
    every: int = 1,
    calibration: Integers | None = None,
) -> tuple[list[PrecisionResult], Samples]:
    """Perplexity of the model in `directory` on `tokens` [T] in each precision; fp32 and bf16 always come first.

    Every precision starts from the same float32 weights. tokens_per_s counts the tokens fed, context included.
    every: of the scored tokens every so many is compared with fp32's distribution. calibration: tokens [B, L] of a text
    that is not scored, for the precisions that need one. on_window is called after each window, for a progress bar.
    Raises UserError for fewer than two windows. Those that the device can't have must be left out: `left_out`.
    """
    chosen = evaluated_precisions(precisions)
    plan = window_plan(len(tokens), window_tokens, stride_tokens)
    if len(plan) < 2:
        raise UserError(f"{len(tokens)} tokens fill one window of {window_tokens}; a standard error needs two or more")
    samples = Samples(window_of(plan), np.arange(1, len(tokens)), np.asarray(tokens[1:]), {})
    fed = sum(window.end - window.begin for window in plan)
    measured: dict[str, tuple[int, float]] = {}
    reference: Reference | None = None
    for precision in chosen:
        model = load_model(directory, torch.float32, device)
        weight_bytes = prepared_(model, precision, calibration)
        start = time.perf_counter()
        if reference is None:
            samples.scores[precision.name], reference = as_reference(model, tokens, plan, every, on_window)
        else:
            samples.scores[precision.name] = score(model, tokens, plan, reference, on_window=on_window)
        measured[precision.name] = weight_bytes, fed / (time.perf_counter() - start)
    return [_summary(precision, samples, *measured[precision.name]) for precision in chosen], samples


def prepared_(model: Llama, precision: Precision | Calibrated, calibration: Integers | None) -> int:
    """Bring a freshly loaded float32 model to a precision, in place; its weight_bytes."""
    if isinstance(precision, Precision):
        return quantize_(model, precision)
    if calibration is None:
        raise UserError(f"precision {precision.name} needs a text to calibrate on, beside the one that is scored")
    return calibrate_(model, precision, torch.as_tensor(calibration, device=model.embed_tokens.weight.device))


def evaluated_precisions(names: list[str]) -> list[Precision | Calibrated]:
    """The precisions to evaluate: the references fp32 and bf16 first, then those named, each once. UserError listing
    what there is for an unknown name."""
    for name in names:
        if name not in KNOWN:
            raise UserError(f"precision {name!r} is unknown; there are {', '.join(KNOWN)}")
    return [KNOWN[name] for name in dict.fromkeys((*REFERENCES, *names))]


def left_out(names: list[str], device: str) -> dict[str, str]:
    """Those of the named precisions that the device has no kernel for, with the reason."""
    found = {one.name: refusal(one, device) for one in evaluated_precisions(names) if isinstance(one, Calibrated)}
    return {name: reason for name, reason in found.items() if reason}


def _batches(plan: list[Window], batch_windows: int) -> Iterator[list[Window]]:
    for _, group in groupby(plan, key=lambda window: window.end - window.begin):
        windows = list(group)
        for start in range(0, len(windows), batch_windows):
            yield windows[start : start + batch_windows]


def _summary(
    precision: Precision | Calibrated, samples: Samples, weight_bytes: int, tokens_per_s: float
) -> PrecisionResult:
    nll = samples.nll_nats[precision.name]
    to_fp32, error = paired_difference(nll, samples.nll_nats["fp32"], samples.window)
    to_bf16, _ = paired_difference(nll, samples.nll_nats["bf16"], samples.window)
    mean = float(nll.mean(dtype=np.float64))
    return PrecisionResult(
        precision=precision.name,
        description=precision.description,
        compute_dtype=str(precision.compute_dtype).removeprefix("torch."),
        weight_bytes=weight_bytes,
        nll_nats_per_token=mean,
        perplexity=float(np.exp(mean)),
        delta_to_fp32=to_fp32,
        delta_to_fp32_standard_error=error,
        relative_to_bf16=relative_percent(to_bf16),
        tokens_per_s=tokens_per_s,
        divergence=divergence(samples.scores[precision.name], samples.window),
    )
