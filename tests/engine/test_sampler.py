"""Sampling: distributions, seeds, penalties, log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats

from serveproof.engine.sampler import Choice, greedy, gumbel, logprobs_of, sample
from serveproof.engine.sequence import SamplingParams

V = 12
DRAWS = 20_000
LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.2, 0.3, -3.0, 0.9])


def rows(count: int, history: list[int] | None = None, **params: Any) -> list[Choice]:
    made = SamplingParams(**({"temperature": 1.0} | params))
    return [Choice(made, seed, 7, history or []) for seed in range(count)]


def expected_p(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    """By definition, one filter after another, in float64."""
    p = (LOGITS.double() / temperature).softmax(0)
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
        p = p / p.sum()
    if top_p < 1:
        before = p[order].cumsum(0) - p[order]
        p[order[before >= top_p]] = 0
        p = p / p.sum()
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"temperature": 1.3, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_frequencies_are_the_distribution(params: dict[str, Any]) -> None:
    drawn = sample(LOGITS.expand(DRAWS, V), rows(DRAWS, **params), torch.zeros(DRAWS, dtype=torch.long))
    counts = torch.bincount(drawn, minlength=V).double()
    p = expected_p(**params)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    assert stats.chisquare(counts[kept].numpy(), (p[kept] * DRAWS).numpy()).pvalue > 1e-3


def test_a_seed_gives_the_same_token_in_any_batch() -> None:
    logits_RV = torch.randn(40, V, generator=torch.Generator().manual_seed(1))
    all_rows = [Choice(SamplingParams(temperature=0.9), 2**40 + n, n, []) for n in range(40)]
    fed = torch.zeros(40, dtype=torch.long)
    together = sample(logits_RV, all_rows, fed)
    for part in (slice(0, 1), slice(7, 19), slice(39, 40)):
        assert torch.equal(sample(logits_RV[part], all_rows[part], fed[part]), together[part])
    assert len(set(together.tolist())) > 4


def test_greedy_rows_among_sampled_ones() -> None:
    logits_RV = torch.randn(3, V, generator=torch.Generator().manual_seed(2))
    mixed = [Choice(SamplingParams(temperature=t), 5, 1, []) for t in (0.0, 1.0, 0.0)]
    drawn = sample(logits_RV, mixed, torch.zeros(3, dtype=torch.long))
    assert drawn[0] == logits_RV[0].argmax()
    assert drawn[2] == logits_RV[2].argmax()


def test_the_noise_is_gumbel() -> None:
    noise = gumbel(torch.arange(50_000)[None], [3], [9])[0].double()
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    other = gumbel(torch.arange(50_000)[None], [4], [9])[0].double()
    assert abs(float(torch.corrcoef(torch.stack((noise, other)))[0, 1])) < 0.02
    assert bool(torch.isfinite(noise).all())


def test_repetition_penalty_as_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    history, fed = [0, 0, 6, 10], 8
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*history, fed]]), LOGITS[None].clone())
    ours = sample(LOGITS[None], rows(1, history, temperature=0.0, repetition_penalty=1.7), torch.tensor([fed]))
    assert int(ours) == int(theirs.argmax())
    assert int(LOGITS.argmax()) != int(ours)


def test_a_penalty_with_no_history_but_the_token_fed() -> None:
    """A prompt of one token: the history before it is empty."""
    logits_RV = torch.tensor([[1.0, 2.0, 1.9]])
    row = Choice(SamplingParams(repetition_penalty=4.0), 0, 1, [])
    assert sample(logits_RV, [row], torch.tensor([1])).tolist() == [2]


def test_logprobs_are_the_models_own() -> None:
    expected = LOGITS.double().log_softmax(0)
    (row,) = logprobs_of(LOGITS[None], [4], 3)
    assert list(row) == [4, 0, 1, 8]
    assert all(value == pytest.approx(float(expected[token]), abs=1e-5) for token, value in row.items())
    (alone,) = logprobs_of(LOGITS[None], [0], 0)
    assert list(alone) == [0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    logits_RV = LOGITS.repeat(3, 1)
    logits_RV[1, 5] = bad
    _, finite = greedy(logits_RV)
    assert finite.tolist() == [True, False, True]
