"""The whole engine on real arithmetic: any mix gives the tokens of transformers' generate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serveproof.engine import start
from serveproof.engine.kv_cache import block_bytes
from serveproof.engine.loader import load_model
from serveproof.engine.model import Llama, full_attention
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError

NEW = 12
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "multi-head, head_dim 64": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64},
    "GQA 8, head_dim 128": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128},
    "Qwen3": {"family": "Qwen3", "head_dim": 16},
    "Mixtral": {"family": "Mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}


def greedy_by_transformers(theirs: Any, prompt: list[int], count: int) -> list[int]:
    out = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=count, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def prompts_of(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(vocabulary, (20,), generator=generator).tolist()
    own = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (1, 5, 16, 17, 33, 7)]
    return [*own, shared + own[1], shared + own[5], (own[1] * 6)[:25]]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Llama, list[list[int]], list[list[int]]]]:
    return {}


@pytest.fixture
def case(tiny_llama: Callable[..., Any], answered: dict[str, Any]) -> Callable[[str], Any]:
    def get(family: str) -> Any:
        if family not in answered:
            directory, theirs = tiny_llama(**FAMILIES[family])
            prompts = prompts_of(97)
            answers = [greedy_by_transformers(theirs, prompt, NEW) for prompt in prompts]
            answered[family] = (load_model(directory), prompts, answers)
        return answered[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family: str, case: Callable[[str], Any]) -> None:
    model, prompts, answers = case(family)
    params = SamplingParams(max_tokens=NEW, ignore_eos=True)
    for changes in ({}, {"max_running": 1, "token_budget": 1}, {"drafts": 3}):
        given_settings = {"dtype": "fp32", "max_running": 4, "token_budget": 24, "max_model_len": 64} | changes
        engine = start_with(model, Settings(**given_settings))
        assert [one.tokens for one in engine.generate(prompts, params)] == answers, changes
        assert engine.snapshot().used_blocks == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_gives_the_same_tokens(data: st.DataObject, case: Callable[[str], Any]) -> None:
    """Batch, chunk, page, preemption by recompute or swap, prefix hits, speculation and overlap, as drawn."""
    model, prompts, answers = case("Llama")
    drafts = data.draw(st.sampled_from([0, 0, 2, 4]))
    running = data.draw(st.integers(1, 6))
    page = data.draw(st.sampled_from([1, 4, 16]))
    least = -(-(33 + NEW) // page) + 1
    engine = start_with(
        model,
        Settings(
            dtype="fp32",
            page_size=page,
            blocks=least + data.draw(st.integers(0, least)),
            host_blocks=data.draw(st.sampled_from([0, 50])),
            max_running=running,
            token_budget=running * (1 + drafts) + data.draw(st.integers(0, 40)),
            max_model_len=64,
            chunked=data.draw(st.booleans()),
            drafts=drafts,
            prefix_caching=data.draw(st.booleans()),
            overlap=data.draw(st.booleans()),
        ),
    )
    order = data.draw(st.permutations(range(len(prompts))))
    done = engine.generate([prompts[i] for i in order], SamplingParams(max_tokens=NEW, ignore_eos=True))
    assert [one.tokens for one in done] == [answers[i] for i in order]
    assert engine.snapshot().used_blocks == 0


@torch.inference_mode()
def test_every_step_has_the_logits_of_a_full_forward(case: Callable[[str], Any]) -> None:
    model, prompts, answers = case("Llama")
    engine = start_with(model, Settings(dtype="fp32", max_running=3, token_budget=9, max_model_len=64))
    done = engine.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True, logprobs=5))
    for prompt, answer, one in zip(prompts, answers, done, strict=True):
        full_LV = model.logits(model.full(torch.tensor([prompt + answer]))[0]).log_softmax(-1)
        for place, (token, row) in enumerate(zip(answer, one.logprobs, strict=True), len(prompt) - 1):
            assert next(iter(row)) == token
            assert len(row) == 5
            for other, value in row.items():
                assert value == pytest.approx(float(full_LV[place, other]), abs=2e-4)


@pytest.mark.parametrize("changes", [{}, {"token_budget": 3}, {"blocks": 10, "page_size": 4}, {"drafts": 3}])
@torch.inference_mode()
def test_a_prompts_own_tokens_are_scored_whole(changes: dict[str, Any], case: Callable[[str], Any]) -> None:
    """In pieces, through preemption, and a second time, when a prefix cache would know the beginning."""
    model, prompts, _ = case("Llama")
    given = {"dtype": "fp32", "max_running": 3, "token_budget": 12, "max_model_len": 64, "page_size": 4} | changes
    engine = start_with(model, Settings(**given))
    params = SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=2)
    for _ in range(2):
        for prompt, one in zip(prompts, engine.generate(prompts, params), strict=True):
            full_LV = model.logits(model.full(torch.tensor([prompt]))[0]).log_softmax(-1)
            assert len(one.prompt_logprobs) == len(prompt) - 1
            for place, (token, row) in enumerate(zip(prompt[1:], one.prompt_logprobs, strict=True)):
                assert next(iter(row)) == token
                for other, value in row.items():
                    assert value == pytest.approx(float(full_LV[place, other]), abs=2e-4)


@torch.inference_mode()
def test_bf16_is_as_near_as_a_full_forward(case: Callable[[str], Any]) -> None:
    """As near to float32 as a full forward in bf16, twice over."""
    model, prompts, _ = case("Llama")
    near = load_model_like(model, "bf16")
    engine = start_with(near, Settings(dtype="bf16", max_running=3, token_budget=9, max_model_len=64))
    done = engine.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True, logprobs=3))
    for prompt, one in zip(prompts, done, strict=True):
        tokens_1L = torch.tensor([prompt + one.tokens])
        exact_LV = model.logits(model.full(tokens_1L)[0]).log_softmax(-1)
        same_LV = near.logits(near.full(tokens_1L)[0]).float().log_softmax(-1)
        allowed = 2 * float((same_LV - exact_LV).abs().max())
        for place, row in enumerate(one.logprobs, len(prompt) - 1):
            assert all(abs(value - float(exact_LV[place, other])) <= allowed for other, value in row.items())


@torch.inference_mode()
def test_an_fp8_cache_is_a_forward_with_rounded_keys_and_values(case: Callable[[str], Any]) -> None:
    model, prompts, _ = case("Llama")
    engine = start_with(model, Settings("fp32", cache_dtype="fp8", max_running=3, token_budget=9, max_model_len=64))
    scales_L2K = engine.runner.cache.scales  # type: ignore[attr-defined]
    inner = full_attention(1)

    def rounded(layer: int, q_NHE: torch.Tensor, *kv: torch.Tensor) -> torch.Tensor:
        scales_2K1 = scales_L2K[layer][:, None, :, None]
        stored = [(x / scale).to(torch.float8_e4m3fn).float() * scale for x, scale in zip(kv, scales_2K1, strict=True)]
        return inner(layer, q_NHE, *stored)

    done = engine.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True, logprobs=3))
    moved = 0.0
    for prompt, one in zip(prompts, done, strict=True):
        tokens_L = torch.tensor(prompt + one.tokens)
        expected_LV = model.logits(model(tokens_L, torch.arange(len(tokens_L)), rounded)).log_softmax(-1)
        exact_LV = model.logits(model.full(tokens_L[None])[0]).log_softmax(-1)
        for place, row in enumerate(one.logprobs, len(prompt) - 1):
            for other, value in row.items():
                assert value == pytest.approx(float(expected_LV[place, other]), abs=1e-3)
                moved = max(moved, abs(value - float(exact_LV[place, other])))
    assert moved > 1e-2  # the cache is not float32 in disguise


def load_model_like(model: Llama, dtype: str) -> Llama:
    made = copy.deepcopy(model)
    return made.to(torch.bfloat16) if dtype == "bf16" else made


def test_a_row_that_is_not_finite_fails_its_request_alone(case: Callable[[str], Any]) -> None:
    model, prompts, answers = case("Llama")
    broken = load_model_like(model, "fp32")
    broken.embed_tokens = torch.nn.Embedding.from_pretrained(model.embed_tokens.weight.clone())
    head = broken.embed_tokens.weight.clone()
    broken.lm_head = torch.nn.Linear(48, 97, bias=False)
    broken.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    poisoned = next(t for t in range(97) if all(t not in p + a for p, a in zip(prompts[1:], answers[1:], strict=True)))
    broken.embed_tokens.weight[poisoned] = float("nan")
    engine = start_with(broken, Settings(dtype="fp32", max_running=4, token_budget=24, max_model_len=64))
    engine.add("bad", [poisoned, 3], SamplingParams(max_tokens=4))
    for index, prompt in enumerate(prompts[1:]):
        engine.add(str(index), prompt, SamplingParams(max_tokens=NEW, ignore_eos=True))
    got: dict[str, list[int]] = {}
    error = None
    while engine.busy:
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.tokens)
            error = output.error if output.request_id == "bad" else error
    assert "not finite" in str(error)
    assert [got[str(i)] for i in range(len(prompts) - 1)] == answers[1:]


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunked": False}, {"drafts": 3}, {"blocks": 10, "page_size": 4}, {"host_blocks": 9}, {"overlap": True}],
)
def test_a_warm_up_leaves_nothing(changes: dict[str, Any], case: Callable[[str], Any]) -> None:
    """An engine that answered other prompts before leaves the runner as it was: the next one's answers are the same."""
    model, prompts, answers = case("Llama")
    given = {"dtype": "fp32", "max_running": 4, "token_budget": 24, "max_model_len": 64} | changes
    engine = start_with(model, Settings(**given))
    start.warm_up(engine)
    assert engine.steps > 2
    assert engine.snapshot().used_blocks == 0
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= 24]
    done = engine.generate([prompts[i] for i in fitting], SamplingParams(max_tokens=NEW, ignore_eos=True))
    assert [one.tokens for one in done] == [answers[i] for i in fitting]


def test_settings_that_cannot_be(case: Callable[[str], Any]) -> None:
    model, _, _ = case("Llama")
    with pytest.raises(UserError, match="max_model_len 300 is more than the model's 256"):
        start_with(model, Settings(dtype="fp32", max_model_len=300))
    with pytest.raises(UserError, match=r"head_dim is 8; attention on a GPU takes 16, 32, 64, 128, 256: serve"):
        start_with(model, Settings(device="cuda"))
    for changes, expected in (
        ({"dtype": "int3"}, "dtype is 'int3'; it can be fp32"),
        ({"cache_dtype": "int3"}, "cache_dtype is 'int3'"),
        ({"page_size": 12}, "page_size is 12; it must be a power of two"),
        ({"blocks": 1}, "blocks is 1; it must be 2 at least"),
    ):
        with pytest.raises(UserError, match=expected):
            Settings(**changes)
    with pytest.raises(UserError, match=r"no memory for a cache of .* blocks of 16 tokens \(.* GiB\)"):
        start_with(model, Settings(dtype="fp32", blocks=10**12, max_model_len=64))


def test_a_cpus_cache_is_bounded_and_offers_what_it_holds(
    tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen times the model's length would be 257 blocks."""
    model = load_model(tiny_llama()[0])
    page = block_bytes(model, 16, torch.float32)
    monkeypatch.setattr(start, "CPU_CACHE_BYTES", 11 * page)
    engine = start_with(model, Settings(dtype="fp32"))
    assert (engine.snapshot().blocks, engine.scheduler.limits.max_model_len) == (10, 160)
    (done,) = engine.generate([[1] * 100], SamplingParams(max_tokens=1000, ignore_eos=True))
    assert len(done.tokens) == 60
    with pytest.raises(UserError, match="the model takes 160"):
        engine.add("long", [1] * 160, SamplingParams())
