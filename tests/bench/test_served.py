"""Ways of serving through the engine, against the model without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveproof.bench.divergence import kl_and_agreement
from serveproof.bench.greedy import Answers, held_against, make_prompts
from serveproof.bench.perplexity import as_reference, score
from serveproof.bench.sensitivity import KINDS, sensitivity
from serveproof.bench.served import PATHS, Problem, serve_all, settings_of
from serveproof.bench.windows import window_plan
from serveproof.engine.loader import load_model
from serveproof.engine.model import Llama
from serveproof.errors import UserError

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@given(st.integers(0, 2**32 - 1), st.floats(0, 30))
def test_divergence_is_never_negative_and_nothing_from_oneself(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    logits, other = torch.randn(3, 17) * scale, torch.randn(3, 17) * scale
    kl, agrees = kl_and_agreement(other, logits)
    p, q = logits.double().softmax(-1), other.double().log_softmax(-1)
    expected = (p * (logits.double().log_softmax(-1) - q)).sum(-1)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-5)
    assert 0 <= agrees.float().mean() <= 1
    same, alike = kl_and_agreement(logits, logits)
    assert float(same.max()) == 0.0
    assert alike.all()


@pytest.fixture
def problem(tiny_llama: Callable[..., Any]) -> tuple[Path, Problem]:
    tokens = np.random.default_rng(3).integers(0, 97, 300)
    return tiny_llama(**WIDE)[0], Problem(tokens, window_plan(300, 64, 48), make_prompts(tokens))


def served(directory: Path, problem: Problem, names: list[str]) -> dict[str, Any]:
    scores, reference = as_reference(load_model(directory), problem.tokens, problem.plan, 3)
    assert scores.kl_nats is None

    def scored(plain: Llama) -> Any:
        return score(plain, problem.tokens, problem.plan, reference)

    return {one.path: one for one in serve_all(names, directory, problem, scored, reference, "cpu")}


def test_what_is_served_is_what_the_model_says(problem: tuple[Path, Problem]) -> None:
    found = served(*problem, ["paged", "chunked", "graphs", "int8_weights", "fp8_cache", "fp8_weights"])
    for name in ("graphs", "fp8_weights"):
        assert found[name].status == "skipped"
        assert found[name].reason == PATHS[name].reason
    for name in ("paged", "chunked", "int8_weights", "fp8_cache"):
        one = found[name]
        assert (one.status, one.reason, one.tokens) == ("passed", "", 299)
        assert one.divergence.tokens == 100
        assert one.greedy.prompts == 4
    # another order of rounding in bf16, and nothing else
    for name in ("paged", "chunked"):
        assert abs(found[name].relative_to_bf16.value) < 1.0
        assert found[name].greedy.largest_gap_nats < 0.25
    assert found["fp8_cache"].divergence.kl.value > 2 * found["paged"].divergence.kl.value
    assert found["paged"].divergence.top1_agreement.value > found["fp8_cache"].divergence.top1_agreement.value


def test_the_engines_scores_are_the_models_token_by_token(problem: tuple[Path, Problem]) -> None:
    from serveproof.bench.served import score_served
    from serveproof.engine.linear import prepare_
    from serveproof.engine.start import start_with

    directory, own = problem
    plain = load_model(directory)
    expected, reference = as_reference(plain, own.tokens, own.plan, 5)
    prepare_(plain, None)
    settings = settings_of(PATHS["chunked"], own, "cpu")
    engine = start_with(plain, settings.__class__(**{**settings.__dict__, "dtype": "fp32", "token_budget": 40}))
    got = score_served(engine, own, reference)
    np.testing.assert_allclose(got.nll_nats, expected.nll_nats, rtol=1e-4, atol=1e-4)
    assert got.kl_nats is not None
    assert got.kl_nats.max() < 1e-5
    assert got.agrees is not None
    assert got.agrees.all()


def test_speculation_is_scored_on_what_drafts_verified(problem: tuple[Path, Problem]) -> None:
    one = served(*problem, ["speculation"])["speculation"]
    assert one.status == "passed", one.reason
    assert one.greedy.draft_tokens > 0
    assert one.divergence is None
    assert "verified" in one.scored
    assert one.tokens == one.greedy.tokens == 4 * 24
    assert one.greedy.largest_gap_nats < 0.25


def test_two_ranks_serve_what_one_does(problem: tuple[Path, Problem], tiny_llama: Callable[..., Any]) -> None:
    nothing = served(*problem, ["tensor_parallel"])["tensor_parallel"]
    assert nothing.status == "skipped"
    assert (
        nothing.reason == "vocab_size 97 does not divide by 2 ranks; num_attention_heads 4 does not divide by 3 ranks"
    )
    directory = tiny_llama(**WIDE, vocab_size=98)[0]
    one = served(directory, problem[1], ["tensor_parallel"])["tensor_parallel"]
    assert one.status == "passed", one.reason
    assert one.settings == {"ranks": 2}
    assert abs(one.relative_to_bf16.value) < 1.0
    assert one.greedy.largest_gap_nats < 0.25


def test_other_tokens_are_found_where_they_begin(problem: tuple[Path, Problem]) -> None:
    directory, own = problem
    model = load_model(directory, torch.bfloat16)
    tokens: list[int] = []
    for _ in range(6):
        ids = torch.tensor([own.prompts[0] + tokens])
        tokens.append(int(model.logits(model.full(ids)[0, -1:]).float().argmax()))
    check, nll = held_against(model, own.prompts[:1], Answers([tokens], [[0.0] * 6], 0))
    assert (check.identical, check.first_divergence, check.largest_gap_nats) == (1, [None], 0.0)
    wrong = [*tokens[:4], (tokens[4] + 1) % 97, tokens[5]]
    check, nll = held_against(model, own.prompts[:1], Answers([wrong], [[0.0] * 6], 0))
    assert (check.identical, check.first_divergence) == (0, [4])
    assert check.largest_gap_nats > 0
    assert len(nll[0]) == 6


def test_two_steps_of_bf16_are_two_steps() -> None:
    """A softmax between made 0.25000006 of them, which is more than a tie may have."""
    logits_AV = torch.zeros(6, 1000, dtype=torch.bfloat16)
    logits_AV[:, 1], logits_AV[:, 2], logits_AV[:, 3] = 20.25, 20.0, 19.75
    model = SimpleNamespace(
        embed_tokens=SimpleNamespace(weight=logits_AV),
        full=lambda ids: torch.zeros(1, ids.shape[1], 1),
        logits=lambda hidden_LD: logits_AV[: len(hidden_LD)],
    )
    check, _ = held_against(model, [[5]], Answers([[2] * 6], [[0.0] * 6], 0))  # type: ignore[arg-type]
    assert (check.first_divergence, check.largest_gap_nats) == ([0], 0.25)


def test_a_map_has_every_layer_and_kind(tiny_llama: Callable[..., Any]) -> None:
    directory, tokens = tiny_llama(**WIDE)[0], np.random.default_rng(3).integers(0, 97, 40)
    seen: list[int] = []
    found = sensitivity(directory, tokens, "fp8_e4m3_channel", on_cell=lambda: seen.append(1))
    assert [(one.layer, one.kind) for one in found.cells] == [(layer, kind) for layer in (0, 1) for kind in KINDS]
    assert len(seen) == 8
    assert all(one.kl_nats > 0 for one in found.cells)
    coarse = sensitivity(directory, tokens, "nvfp4")
    assert sum(one.kl_nats for one in coarse.cells) > 4 * sum(one.kl_nats for one in found.cells)
    with pytest.raises(UserError, match="quantizes nothing"):
        sensitivity(directory, tokens, "bf16")


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="path 'fast' is unknown; there are paged, chunked"):
        serve_all(["fast"], Path("nowhere"), None, None, None, "cpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the text has 100 tokens, and 4 prompts take 32 each"):
        make_prompts(np.arange(100))
