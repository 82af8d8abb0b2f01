from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serveproof.bench.divergence import divergence
from serveproof.bench.perplexity import as_reference, evaluate, score, token_nll
from serveproof.bench.windows import (
    mean_with_standard_error,
    paired_difference,
    relative_percent,
    window_of,
    window_plan,
)
from serveproof.engine.loader import load_model
from serveproof.errors import UserError
from serveproof.results import Estimate


@given(st.data())
def test_every_token_is_scored_once_with_context(data: st.DataObject) -> None:
    window = data.draw(st.integers(2, 60))
    stride, tokens = data.draw(st.integers(1, window - 1)), data.draw(st.integers(2, 400))
    plan = window_plan(tokens, window, stride)
    scored = [position for w in plan for position in range(w.score_from, w.end)]
    assert scored == list(range(1, tokens))
    for w in plan:
        assert 0 <= w.begin < w.score_from < w.end <= tokens
        assert w.end - w.begin <= window
    for w in plan[1:]:
        assert w.score_from - w.begin == window - stride
        assert w.end - w.score_from <= stride
    # Only the last window may be ragged.
    assert all(w.end - w.begin == window for w in plan[:-1])


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_stride_that_does_not_fit(stride: int) -> None:
    with pytest.raises(UserError, match=f"stride_tokens {stride} does not fit"):
        window_plan(100, 8, stride)


def test_standard_error_of_single_token_windows_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(size=50)
    mean, error = mean_with_standard_error(values, np.arange(50))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    with pytest.raises(ValueError, match="two windows"):
        mean_with_standard_error(values, np.zeros(50, np.int64))


def test_interval_covers_the_truth_when_tokens_in_a_window_are_correlated() -> None:
    random = np.random.default_rng(1)
    # As in a real plan: a long first window, equal ones, a ragged last.
    window = np.repeat(np.arange(25), [40, *[20] * 23, 7])
    truth, covered, errors, means = 0.02, 0, [], []
    for _ in range(2000):
        shared = random.normal(scale=0.05, size=25)[window]
        delta = truth + shared + random.normal(scale=0.1, size=len(window))
        nll = random.exponential(size=len(window))
        estimate, error = paired_difference(nll + delta, nll, window)
        covered += estimate.low <= truth <= estimate.high
        errors.append(error)
        means.append(estimate.value)
    assert 0.93 <= covered / 2000 <= 0.97
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.06)


def test_relative_percent_transforms_value_and_interval() -> None:
    relative = relative_percent(Estimate(value=0.0, low=-np.log(1.01), high=np.log(1.02), unit="nats/token"))
    assert relative.value == 0.0
    assert relative.low == pytest.approx(100 * (1 / 1.01 - 1))
    assert relative.high == pytest.approx(2.0)
    assert relative.unit == "%"


def test_batching_changes_nothing(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama()[0])
    tokens, plan = np.random.default_rng(2).integers(0, 97, 205), window_plan(205, 32, 20)
    seen: list[int] = []
    one = token_nll(model, tokens, plan, batch_windows=1)
    many = token_nll(model, tokens, plan, batch_windows=3, on_window=lambda: seen.append(1))
    assert one.dtype == np.float32
    assert len(one) == 204
    assert len(seen) == len(plan)
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-6)


def test_evaluate_pairs_every_precision_with_the_references(tiny_llama: Callable[..., Any]) -> None:
    tokens = np.random.default_rng(3).integers(0, 97, 300)
    found, samples = evaluate(tiny_llama()[0], tokens, ["int8_channel", "bf16"], 64, 32)
    assert [result.precision for result in found] == ["fp32", "bf16", "int8_channel"]
    assert found[0].delta_to_fp32.value == found[1].relative_to_bf16.value == 0.0
    assert found[2].delta_to_fp32_standard_error > 0
    assert found[2].perplexity == pytest.approx(np.exp(samples.nll_nats["int8_channel"].mean()), rel=1e-5)
    ratio = found[2].perplexity / found[1].perplexity
    assert found[2].relative_to_bf16.value == pytest.approx(100 * (ratio - 1), abs=1e-3)
    assert np.array_equal(samples.token, tokens[1:])
    assert np.array_equal(samples.position, np.arange(1, 300))
    assert np.bincount(samples.window).tolist() == [63, *[32] * 7, 12]
    with pytest.raises(UserError, match="fill one window"):
        evaluate(tiny_llama()[0], tokens[:64], [], 64, 32)


@pytest.mark.parametrize("every", [1, 3, 4, 64])
def test_divergence_is_of_every_so_many_tokens(tiny_llama: Callable[..., Any], every: int) -> None:
    model = load_model(tiny_llama()[0])
    tokens, plan = np.random.default_rng(2).integers(0, 97, 205), window_plan(205, 32, 20)
    scores, reference = as_reference(model, tokens, plan, every)
    again = score(model, tokens, plan, reference, batch_windows=3)
    np.testing.assert_allclose(again.nll_nats, scores.nll_nats, rtol=1e-5, atol=1e-6)
    assert again.kl_nats is not None
    assert len(again.kl_nats) == len(reference.hidden_ND) == len(range(0, 204, every))
    # one window's token against another's would be far from it
    assert again.kl_nats.max() < 1e-6
    assert again.agrees is not None
    assert again.agrees.all()
    found = divergence(again, window_of(plan))
    assert found is not None
    assert (found.top1_agreement.value, found.tokens) == (100.0, len(range(0, 204, every)))


@torch.inference_mode()
def transformers_nll(directory: Path, tokens: np.ndarray, window: int, stride: int) -> np.ndarray:
    """The loop of Hugging Face's guide, on the model of the same directory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    pieces, scored = [], 1
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        ids = torch.tensor(tokens[begin:end])[None]
        log_probabilities = model(ids).logits.float().log_softmax(-1)[0, scored - begin - 1 : -1]
        pieces.append(-log_probabilities.gather(1, ids[0, scored - begin :, None])[:, 0])
        scored = end
        if end == len(tokens):
            break
    return torch.cat(pieces).numpy()


def test_default_model_agrees_with_transformers(default_model: Path) -> None:
    # Prose that every Python carries.
    prose = (statistics.__doc__ or "") + (statistics.NormalDist.__doc__ or "") + (statistics.quantiles.__doc__ or "")
    tokenizer = Tokenizer.from_file(str(default_model / "tokenizer.json"))
    tokens = np.array(tokenizer.encode(prose).ids[:350])
    found, samples = evaluate(default_model, tokens, [], 160, 100)
    expected = transformers_nll(default_model, tokens, 160, 100)
    assert found[0].perplexity == pytest.approx(float(np.exp(expected.mean())), rel=1e-3)
    np.testing.assert_allclose(samples.nll_nats["fp32"], expected, rtol=1e-3, atol=1e-3)
    # A model that predicts nothing has the vocabulary's size, 49152.
    assert found[0].perplexity < 60
    assert found[1].perplexity == pytest.approx(found[0].perplexity, rel=0.02)
