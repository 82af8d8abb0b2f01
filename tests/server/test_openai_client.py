"""The server through OpenAI's own client, its answers held against the engine without a server."""

from __future__ import annotations

from typing import Any

import pytest

from serveproof.engine.engine import Engine
from serveproof.engine.sequence import SamplingParams
from tests.server.conftest import Server

openai = pytest.importorskip("openai")
PROMPT = [5, 6, 7, 8, 9, 10]
WORDS = "w5 w6 w7 w8 w9 w10"


@pytest.fixture(scope="module")
def client(served: Server) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def answer(engine: Engine, prompt: list[int], **params: Any) -> Any:
    (done,) = engine.generate([prompt], SamplingParams(**params))
    return done


def test_the_model_is_listed_by_name_and_root(client: Any, model: Any) -> None:
    (one,) = client.models.list().data
    assert (one.id, one.root) == ("tiny", str(model))
    assert client.completions.create(model=str(model), prompt=WORDS, max_tokens=1).model == "tiny"


@pytest.mark.parametrize("prompt", [WORDS, PROMPT], ids=["text", "ids"])
def test_a_completion_is_the_engines(prompt: Any, client: Any, engine: Engine) -> None:
    expected = answer(engine, PROMPT, max_tokens=20)
    done = client.completions.create(model="tiny", prompt=prompt, max_tokens=20, temperature=0)
    assert done.choices[0].text == expected.text
    assert done.choices[0].finish_reason == expected.finish_reason
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (6, len(expected.tokens))


def test_a_stream_holds_the_same_text_and_its_usage(client: Any, engine: Engine) -> None:
    expected = answer(engine, PROMPT, max_tokens=20, ignore_eos=True)
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = list(
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=20, temperature=0, stream=True, stream_options=options,
            extra_body={"ignore_eos": True},
        )
    )  # fmt: skip
    assert "".join(event.choices[0].text for event in events[:-1]) == expected.text
    assert [event.usage.completion_tokens for event in events] == [*range(1, 21), 20]
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * 19 + ["length"]
    assert events[-1].choices == []


def test_a_chat_goes_through_the_template(client: Any, engine: Engine) -> None:
    expected = answer(engine, [1, 5, 6, 3], max_tokens=7, ignore_eos=True)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "w5 w6"}], "temperature": 0}
    extra = {"extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**asked, max_completion_tokens=7, **extra)
    assert whole.choices[0].message.content == expected.text
    stream = list(client.chat.completions.create(**asked, max_tokens=7, stream=True, **extra))
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content for event in stream) == expected.text
    parts = [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6"}]
    same = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=7, **extra
    )
    assert same.choices[0].message.content == expected.text


def test_without_a_limit_a_chat_may_fill_the_models_length(client: Any) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "w5"}], "temperature": 0}
    done = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    assert done.usage.total_tokens == 256


def test_choices_of_one_seed_differ_and_come_again(client: Any) -> None:
    asked = {"model": "tiny", "prompt": [PROMPT, [1, 2]], "n": 3, "max_tokens": 12, "seed": 7, "temperature": 1.5}
    first, again = (client.completions.create(**asked, extra_body={"ignore_eos": True}) for _ in range(2))
    texts = [one.text for one in first.choices]
    assert [one.index for one in first.choices] == list(range(6))
    assert texts == [one.text for one in again.choices]
    assert len(set(texts)) == 6
    assert first.usage.prompt_tokens == 8


def test_log_probabilities_are_the_engines(client: Any, engine: Engine) -> None:
    expected = answer(engine, PROMPT, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=3)
    ignoring = {"extra_body": {"ignore_eos": True}}
    done = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=3, echo=True, **ignoring
    )
    told = done.choices[0].logprobs
    rows = [*expected.prompt_logprobs, *expected.logprobs]
    ids = PROMPT[1:] + expected.tokens
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(
        [row[token] for row, token in zip(rows, ids, strict=True)], abs=1e-5
    )
    assert [max(row, key=row.get) for row in told.top_logprobs[1:]][5:] == told.tokens[6:]
    assert done.choices[0].text.split() == [f"w{token}" for token in PROMPT + expected.tokens]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "w5 w6"}], "temperature": 0, "max_tokens": 4}
    chat = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, **ignoring)
    content = chat.choices[0].logprobs.content
    assert len(content) == 4
    assert all(one.top_logprobs[0].token == one.token and len(one.top_logprobs) == 2 for one in content)
    assert bytes(content[0].bytes).decode() == content[0].token


def test_a_prompt_is_scored_without_an_answer(client: Any) -> None:
    done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, logprobs=1, echo=True)
    assert done.choices[0].text.split() == WORDS.split()
    assert len(done.choices[0].logprobs.token_logprobs) == 6
    assert done.usage.completion_tokens == 0


def test_a_stop_string_ends_the_answer_before_it(client: Any, engine: Engine) -> None:
    words = answer(engine, PROMPT, max_tokens=20, ignore_eos=True).text.split()
    stop = next(word for word in words[3:] if word not in words[:3])
    done = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop], extra_body={"ignore_eos": True}
    )
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].text.split() == words[: words.index(stop)]


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"model": "other"}, "model 'other' is not served here; it is 'tiny'", "model"),
    ({"prompt": list(range(96)) * 3}, "the prompt has 288 tokens, the model takes 256", None),
    ({"prompt": [97]}, "prompt: token id 97 is not below the vocabulary's 97", "prompt"),
    ({"prompt": ""}, "the prompt is empty", None),
    ({"temperature": -1}, "temperature: Input should be greater than or equal to 0", "temperature"),
    ({"max_tokens": 0}, "max_tokens: 0 goes with echo", "max_tokens"),
    ({"n": 1000}, "n: Input should be less than or equal to 128", "n"),
    ({"logprobs": 21}, "logprobs: Input should be less than or equal to 20", "logprobs"),
    ({"stop": ["x"] * 17}, "at most 16 items", None),
    ({"stop": "x" * 257}, "at most 256 characters", None),
    ({"presence_penalty": 0.5}, "presence_penalty: Input should be less than or equal to 0", "presence_penalty"),
    ({"extra_body": {"best": 3}}, "best: this server does not know the field; leave it out", "best"),
    ({"stream_options": {"include_usage": True}}, "stream_options: goes with stream", "stream_options"),
    ({"prompt": ["w1"] * 100, "n": 2}, "100 prompts with 2 choices each are more than 128 together", "n"),
]


@pytest.mark.parametrize(("changes", "message", "param"), WRONG, ids=[message[:30] for _, message, _ in WRONG])
def test_bad_input_is_one_line_in_openais_shape(
    changes: dict[str, Any], message: str, param: str | None, client: Any
) -> None:
    error = openai.NotFoundError if "model" in changes else openai.BadRequestError
    with pytest.raises(error) as caught:
        client.completions.create(**({"model": "tiny", "prompt": WORDS} | changes))
    assert message in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]
    if param:
        assert caught.value.body["param"] == param


def test_a_conversation_that_the_template_refuses_says_why(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="no tools here"):
        client.chat.completions.create(model="tiny", messages=[{"role": "tool", "content": "w1"}])  # type: ignore[list-item]
