"""Perplexity by strided sliding windows, and paired differences between precisions.

Each token of the chosen span but the first is scored exactly once, with at least window - stride tokens of context
(once the span is that long). The first window scores all its tokens but the first, each later one only those that the
window before it did not reach. (Hugging Face's guide "Perplexity of fixed-length models" describes the same windows.)
"""

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
from scipy import stats

from serveproof.engine.loader import load_model
from serveproof.engine.model import Llama
from serveproof.engine.quantization import Precision, get_precision, quantize_
from serveproof.errors import UserError
from serveproof.results import Estimate, PrecisionResult

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
REFERENCES = ("fp32", "bf16")
LOGITS_AT_ONCE = 256  # float32 logits of a 49k vocabulary take 200 KB a position


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) are fed; tokens [score_from, end) are scored."""

    begin: int
    score_from: int
    end: int


@dataclass(frozen=True)
class Samples:
    """Per scored token, in order: its window, its position in the span, its id; and its NLL in nats per precision."""

    window: Integers
    position: Integers
    token: Integers
    nll_nats: dict[str, NDArray[np.float32]]


def window_plan(tokens: int, window_tokens: int, stride_tokens: int) -> list[Window]:
    """The windows that cover a span of `tokens`; the last may be shorter.

    Raises UserError unless 1 <= stride < window (at stride = window a window's first token would have no context).
    """
    if not 1 <= stride_tokens < window_tokens:
        raise UserError(
            f"stride_tokens {stride_tokens} does not fit window_tokens {window_tokens}; it must be from 1 to window - 1"
        )
    windows = [Window(0, 1, min(window_tokens, tokens))]
    while windows[-1].end < tokens:
        begin, scored = windows[-1].begin + stride_tokens, windows[-1].end
        windows.append(Window(begin, scored, min(begin + window_tokens, tokens)))
    return windows


def mean_with_standard_error(values: Floats, window: Integers) -> tuple[float, float]:
    """Mean over tokens and its standard error over windows (cluster-robust, as tokens in a window are correlated).

    values: [tokens]; window: [tokens], the window of each. Windows of unequal size weigh by their tokens. Source:
    Cameron and Miller 2015, "A practitioner's guide to cluster-robust inference", with the G / (G - 1) correction.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    sums = np.bincount(np.unique(window, return_inverse=True)[1], weights=values - mean)
    count = len(sums)
    if count < 2:
        raise ValueError("a standard error over windows needs two windows at least")
    return mean, float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))


def paired_difference(
    values: Floats, reference: Floats, window: Integers, confidence: float = 0.95
) -> tuple[Estimate, float]:
    """Mean of values - reference in nats per token with its t interval (windows - 1 degrees), and standard error."""
    difference = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    mean, error = mean_with_standard_error(difference, window)
    half = float(stats.t.ppf((1 + confidence) / 2, len(np.unique(window)) - 1)) * error
    return Estimate(value=mean, low=mean - half, high=mean + half, unit="nats/token", confidence=confidence), error


def relative_percent(difference: Estimate) -> Estimate:
    """A paired NLL difference as the change of perplexity: 100 (exp(d) - 1), interval by the same transform."""
    value, low, high = (100 * float(np.expm1(nats)) for nats in (difference.value, difference.low, difference.high))
    return Estimate(value=value, low=low, high=high, unit="%", confidence=difference.confidence)


@torch.inference_mode()
def token_nll(
    model: Llama,
    tokens: Integers,
    plan: list[Window],
    batch_windows: int = 4,
    on_window: Callable[[], object] = lambda: None,
) -> NDArray[np.float32]:
    """NLL in nats of every scored token, in the plan's order, float32 [scored]; log-softmax in float32.

    Windows of one shape go through the model `batch_windows` at a time; only the scored positions reach the LM head.
    """
    device = model.embed_tokens.weight.device
    ids_T = torch.as_tensor(tokens, dtype=torch.int64, device=device)
    pieces = []
    for batch in _batches(plan, batch_windows):
        hidden_BLD = model.full(torch.stack([ids_T[window.begin : window.end] for window in batch]))
        for window, hidden_LD in zip(batch, hidden_BLD, strict=True):
            # The hidden state at position p predicts token p + 1.
            predicting_ND = hidden_LD[window.score_from - 1 - window.begin : -1]
            targets_N = ids_T[window.score_from : window.end]
            chunks = zip(
                torch.split(predicting_ND, LOGITS_AT_ONCE), torch.split(targets_N, LOGITS_AT_ONCE), strict=True
            )
            pieces += [F.cross_entropy(model.logits(h).float(), t, reduction="none") for h, t in chunks]
            on_window()
    result: NDArray[np.float32] = torch.cat(pieces).cpu().numpy()
    return result


def evaluate(
    directory: Path | str,
    tokens: Integers,
    precisions: list[str],
    window_tokens: int,
    stride_tokens: int,
    device: str = "cpu",
    on_window: Callable[[], object] = lambda: None,
) -> tuple[list[PrecisionResult], Samples]:
    """Perplexity of the model in `directory` on `tokens` [T] in each precision; fp32 and bf16 always come first.

    Every precision starts from the same float32 weights. tokens_per_s counts the tokens fed, context included.
    on_window is called after each window, for a progress bar. Raises UserError for fewer than two windows.
    """
    chosen = evaluated_precisions(precisions)
    plan = window_plan(len(tokens), window_tokens, stride_tokens)
    if len(plan) < 2:
        raise UserError(f"{len(tokens)} tokens fill one window of {window_tokens}; a standard error needs two or more")
    scored = [window.end - window.score_from for window in plan]
    window_index = np.repeat(np.arange(len(plan)), scored)
    samples = Samples(window_index, np.arange(1, len(tokens)), np.asarray(tokens[1:]), {})
    fed = sum(window.end - window.begin for window in plan)
    measured: dict[str, tuple[int, float]] = {}
    for precision in chosen:
        model = load_model(directory, torch.float32, device)
        weight_bytes = quantize_(model, precision)
        start = time.perf_counter()
        samples.nll_nats[precision.name] = token_nll(model, tokens, plan, on_window=on_window)
        measured[precision.name] = weight_bytes, fed / (time.perf_counter() - start)
    return [_summary(precision, samples, *measured[precision.name]) for precision in chosen], samples


def evaluated_precisions(names: list[str]) -> list[Precision]:
    """The precisions to evaluate: the references fp32 and bf16 first, then those named, each once."""
    return [get_precision(name) for name in dict.fromkeys((*REFERENCES, *names))]


def _batches(plan: list[Window], batch_windows: int) -> Iterator[list[Window]]:
    for _, group in groupby(plan, key=lambda window: window.end - window.begin):
        windows = list(group)
        for start in range(0, len(windows), batch_windows):
            yield windows[start : start + batch_windows]


def _summary(precision: Precision, samples: Samples, weight_bytes: int, tokens_per_s: float) -> PrecisionResult:
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
    )
