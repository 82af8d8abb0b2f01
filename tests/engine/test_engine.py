"""The host's side against a model that is a function of what it reads through the block table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.engine.block_manager import BlockManager
from serveproof.engine.engine import Engine
from serveproof.engine.policies import POLICIES
from serveproof.engine.scheduler import Limits
from serveproof.engine.sequence import Sampled, SamplingParams, Step
from serveproof.errors import UserError
from tests.engine.fake_runner import VOCABULARY, FakeRunner, Ready, answer

STOP = 3


def make(
    blocks: int = 40, page: int = 4, host: int = 0, prefix: bool = True, runner: Any = None, **changes: Any
) -> Engine:
    limits = {"max_running": 4, "token_budget": 16, "max_model_len": 64} | changes
    engine = {name: limits.pop(name) for name in ("policy", "overlap") if name in limits}
    manager = BlockManager(blocks, page, host, prefix)
    return Engine(runner or FakeRunner(page), manager, Limits(**limits), stop_ids=(STOP,), **engine)


@st.composite
def mixes(draw: st.DrawFn) -> dict[str, Any]:
    page = draw(st.sampled_from([1, 2, 4, 8]))
    drafts = draw(st.sampled_from([0, 0, 3]))
    running = draw(st.integers(1, 5))
    start = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=16))
    prompts = draw(
        st.lists(
            st.tuples(st.booleans(), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)),
            min_size=1,
            max_size=8,
        )
    )
    return {
        "requests": [
            ((start + own if shared else own), draw(st.integers(1, 14)), draw(st.integers(0, 12)), draw(st.booleans()))
            for shared, own in prompts
        ],
        "aborts": draw(st.dictionaries(st.integers(0, 7), st.integers(1, 20), max_size=2)),
        "page": page,
        "blocks": 1 + -(-50 // page) + draw(st.integers(0, 30)),
        "host": draw(st.sampled_from([0, 0, 10, 60])),
        "prefix": draw(st.booleans()),
        "policy": draw(st.sampled_from(sorted(POLICIES))),
        "overlap": draw(st.booleans()),
        "max_running": running,
        "token_budget": running * (1 + drafts) + draw(st.integers(0, 20)),
        "chunked": draw(st.booleans()),
        "drafts": drafts,
    }


@settings(max_examples=300, deadline=None)
@given(mixes())
def test_every_mix_gives_the_sequential_answer(mix: dict[str, Any]) -> None:
    """Whatever is batched, cut, preempted, swapped, shared, guessed or aborted: each answer is that of the model alone,
    all requests finish within bounded steps, and every block comes back."""
    requests, aborts = mix.pop("requests"), mix.pop("aborts")
    engine = make(swap=bool(mix["host"]), **mix)
    got: dict[str, list[int]] = {}
    reasons: dict[str, str | None] = {}
    for now in range(2000):
        for number, (prompt, count, arrival, ignore) in enumerate(requests):
            if arrival == now:
                params = SamplingParams(max_tokens=count, ignore_eos=ignore)
                engine.add(str(number), prompt, params, tenant=f"t{number % 2}", priority=number % 3)
                got[str(number)] = []
        for number, when in aborts.items():
            if when == now:
                engine.abort(str(number))
        for output in engine.step():
            got[output.request_id] += output.tokens
            reasons[output.request_id] = output.finish_reason
        if now >= 12 and not engine.busy:
            break
    assert not engine.busy
    for number, (prompt, count, _, ignore) in enumerate(requests):
        expected = answer(prompt, count, frozenset() if ignore else frozenset({STOP}))
        if reasons.get(str(number)) in ("stop", "length"):
            assert got[str(number)] == expected
        else:  # aborted: what came was right
            assert number in aborts
            assert got.get(str(number), []) == expected[: len(got.get(str(number), []))]
    snapshot = engine.snapshot()
    assert (snapshot.used_blocks, snapshot.running, snapshot.waiting) == (0, 0, 0)
    assert len(engine.blocks.free_host) == mix["host"]
    assert sorted(engine.scheduler.slots) == list(range(mix["max_running"]))
    assert all(count == 0 for count in engine.blocks.references)


def test_a_shared_beginning_is_computed_once() -> None:
    engine = make(max_running=1)
    prompt = [1, 2, 4, 5] * 3
    first, second = engine.generate([prompt, prompt], SamplingParams(max_tokens=3, ignore_eos=True))
    assert first.tokens == second.tokens
    assert engine.snapshot().prefix_hit_tokens == 8  # the last block is computed, for one token at least must be


def test_preemption_by_recompute_and_by_swap() -> None:
    prompts = [[i % VOCABULARY, 1, 2, 5, 6, 0, i % 3, 1] for i in range(4)]
    for host in (0, 100):
        engine = make(blocks=13, host=host, swap=bool(host), prefix=False)
        done = engine.generate(prompts, SamplingParams(max_tokens=16, ignore_eos=True))
        assert [one.tokens for one in done] == [answer(prompt, 16) for prompt in prompts]
        assert engine.snapshot().preemptions > 0


class Recorded(FakeRunner):
    """Keeps how many tokens of each sequence every step computed."""

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self.steps: list[list[int]] = []

    def launch(self, step: Step) -> Ready:
        self.steps.append([chunk.length for chunk in step.chunks])
        return super().launch(step)


@pytest.mark.parametrize(("chunked", "steps"), [(False, [[40], [1, 1]]), (True, [[1, 15], [1, 15], [1, 10], [1, 1]])])
def test_a_whole_prompt_goes_before_the_decodes(chunked: bool, steps: list[list[int]]) -> None:
    """One that is longer than what the decodes leave of the budget must not wait until nothing decodes."""
    runner = Recorded(4)
    engine = make(chunked=chunked, runner=runner, overlap=False)
    engine.add("short", [1, 2, 4], SamplingParams(max_tokens=30, ignore_eos=True))
    for _ in range(3):
        engine.step()
    runner.steps.clear()
    engine.add("long", [5, 6, 0, 1] * 10, SamplingParams(max_tokens=9, ignore_eos=True))
    for _ in steps:
        engine.step()
    assert runner.steps == steps


def test_what_can_never_fit_is_refused_at_once() -> None:
    engine = make(blocks=5, page=4)
    with pytest.raises(UserError, match=r"needs 6 cache blocks of 4 tokens .* the cache has 4"):
        engine.add("a", [1] * 8, SamplingParams(max_tokens=14))
    with pytest.raises(UserError, match="prompt is empty"):
        engine.add("a", [], SamplingParams())
    with pytest.raises(UserError, match="64 tokens, the model takes 64"):
        engine.add("a", [1] * 64, SamplingParams())
    assert not engine.busy
    engine.add("a", [1], SamplingParams())
    with pytest.raises(UserError, match="'a' is there already"):
        engine.add("a", [1], SamplingParams())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": ("",)}, "stop"),
        ({"seed": -1}, "seed"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_parameters_out_of_range_are_one_line(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is .*; it must be") as caught:
        SamplingParams(**changes)
    assert "\n" not in str(caught.value)


def test_a_failing_request_does_not_end_the_others() -> None:
    class Failing(FakeRunner):
        def launch(self, step: Step) -> Ready:
            ready = super().launch(step)
            names = [chunk.sequence.request_id for chunk in step.chunks if chunk.samples]
            failed = [Sampled((), error="logits are not finite") if name == "bad" else one for name, one in
                      zip(names, ready.results, strict=True)]  # fmt: skip
            return Ready(failed)

    engine = make(runner=Failing(4))
    engine.add("bad", [1, 2, 5], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.add("good", [1, 2, 6], SamplingParams(max_tokens=5, ignore_eos=True))
    tokens: list[int] = []
    errors = []
    while engine.busy:
        for output in engine.step():
            if output.request_id == "good":
                tokens += output.tokens
            elif output.error:
                errors.append((output.finish_reason, output.error))
    assert tokens == answer([1, 2, 6], 5)
    assert errors == [("error", "logits are not finite")]
    assert engine.snapshot().used_blocks == 0


def order_of_first_tokens(engine: Engine) -> list[str]:
    seen: list[str] = []
    while engine.busy:
        for output in engine.step():
            if output.request_id not in seen:
                seen.append(output.request_id)
    return seen


def test_policies_admit_in_their_order() -> None:
    now = [0.0]
    rows = [("a", 2, 9.0), ("b", 0, None), ("c", 1, 1.0), ("d", 0, 2.0)]
    expected = {"first_come": "abcd", "priority": "bdca", "deadline": "cdab"}
    for policy, order in expected.items():
        engine = make(policy=policy, max_running=1)
        engine.clock = lambda: now[0]
        for name, priority, target in rows:
            engine.add(name, [1, 2], SamplingParams(max_tokens=2, ignore_eos=True), "t", priority, target)
        assert "".join(order_of_first_tokens(engine)) == order, policy


def test_fair_serves_backlogged_tenants_alike() -> None:
    """The greedy tenant came first with ten times the requests; VTC's bound: the difference of service stays below
    twice what one request and one batch can hold (theorem 4.4 of the paper, with its weights)."""
    engine = make(policy="fair", max_running=2, blocks=200)
    for number in range(40):
        engine.add(f"greedy{number}", [1, 2, number % 7], SamplingParams(max_tokens=6, ignore_eos=True), "greedy")
    for number in range(4):
        engine.add(f"modest{number}", [5, 6, number], SamplingParams(max_tokens=6, ignore_eos=True), "modest")
    served = {"greedy": 0, "modest": 0}
    worst = 0
    while any(name.startswith("modest") for name in engine.requests):
        for output in engine.step():
            tenant = output.request_id.rstrip("0123456789")
            served[tenant] += len(output.tokens)
            worst = max(worst, abs(served["greedy"] - served["modest"]))
    assert worst <= 2 * 2 * 6
    assert served["modest"] == 24


def test_limits_that_let_nothing_run_are_refused() -> None:
    with pytest.raises(UserError, match="token_budget 3 is less than"):
        Limits(max_running=4, token_budget=3, max_model_len=8)
    with pytest.raises(UserError, match="'sjf' is unknown; there are first_come"):
        make(policy="sjf")


def test_forgotten_content_is_found_no_more() -> None:
    engine = make(max_running=1)
    prompt = [1, 2, 4, 5] * 3
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    first = engine.generate([prompt], params)
    engine.blocks.forget_kept()
    assert engine.blocks.available == engine.blocks.usable
    assert engine.generate([prompt], params) == first
    assert engine.snapshot().prefix_hit_tokens == 0
