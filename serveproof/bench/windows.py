"""Strided sliding windows over a text, and statistics of what is measured a token, with windows as the unit.

Each token of the chosen span but the first is scored exactly once, with at least window - stride tokens of context
(once the span is that long). The first window scores all its tokens but the first, each later one only those that the
window before it did not reach. (Hugging Face's guide "Perplexity of fixed-length models" describes the same windows.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from serveproof.errors import UserError
from serveproof.results import Estimate

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) are fed; tokens [score_from, end) are scored."""

    begin: int
    score_from: int
    end: int


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
    return mean_estimate(difference, window, "nats/token", confidence)


def mean_estimate(values: Floats, window: Integers, unit: str, confidence: float = 0.95) -> tuple[Estimate, float]:
    """Mean over tokens of `values` [tokens] with its t interval over windows, and its standard error."""
    mean, error = mean_with_standard_error(values, window)
    half = float(stats.t.ppf((1 + confidence) / 2, len(np.unique(window)) - 1)) * error
    return Estimate(value=mean, low=mean - half, high=mean + half, unit=unit, confidence=confidence), error


def relative_percent(difference: Estimate) -> Estimate:
    """A paired NLL difference as the change of perplexity: 100 (exp(d) - 1), interval by the same transform."""
    value, low, high = (100 * float(np.expm1(nats)) for nats in (difference.value, difference.low, difference.high))
    return Estimate(value=value, low=low, high=high, unit="%", confidence=difference.confidence)


def window_of(plan: list[Window]) -> Integers:
    """The window of each scored token, in order."""
    return np.repeat(np.arange(len(plan)), [window.end - window.score_from for window in plan])
