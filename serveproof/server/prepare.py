"""A client's request as requests to the engine: prompts as tokens, sampling parameters, one of each prompt a choice."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from serveproof.engine.sequence import SamplingParams
from serveproof.server.chat import ChatTemplate
from serveproof.server.errors import ApiError
from serveproof.server.requests import (
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    Generation,
    TokenizeRequest,
)
from serveproof.server.wire import Add

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Model:
    """What requests are held against. root: where it was loaded from; vocabulary: ids that a prompt may hold."""

    name: str
    root: str
    tokenizer: Tokenizer
    template: ChatTemplate
    vocabulary: int
    created: int


def check_text(text: str, param: str) -> str:
    """The text; ApiError for half a surrogate pair, which JSON can hold and UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{param}: holds half a surrogate pair, which is no text", param) from None
    return text


def encode(model: Model, text: str, param: str, special: bool = True) -> list[int]:
    """Token ids of a text."""
    return list(model.tokenizer.encode(check_text(text, param), add_special_tokens=special).ids)


def prompts_of(request: CompletionRequest, model: Model) -> list[list[int]]:
    """Every prompt as token ids."""
    given = request.prompt
    if isinstance(given, str):
        return [encode(model, given, "prompt", request.add_special_tokens)]
    texts = [one for one in given if isinstance(one, str)]
    if texts:
        return [encode(model, one, "prompt", request.add_special_tokens) for one in texts]
    lists = [list(one) for one in given if isinstance(one, list)]
    ids = lists or [[one for one in given if isinstance(one, int)]]
    for one in ids:
        over = next((token for token in one if token >= model.vocabulary), None)
        if over is not None:
            raise ApiError(400, f"prompt: token id {over} is not below the vocabulary's {model.vocabulary}", "prompt")
    return ids


def chat_prompt(messages: list[dict[str, str]], model: Model) -> list[int]:
    """A conversation as token ids; the template writes the special tokens itself."""
    for message in messages:
        check_text(message["content"], "messages")
    return encode(model, model.template.prompt(messages), "messages", special=False)


def to_tokenize(request: TokenizeRequest, model: Model) -> list[int]:
    """The token ids of POST /tokenize."""
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "prompt: give either prompt or messages", "prompt")
    if request.messages is not None:
        return chat_prompt([one.as_dict() for one in request.messages], model)
    return encode(model, request.prompt or "", "prompt", request.add_special_tokens)


def _params(request: Generation, temperature: float, max_tokens: int, logprobs: int | None) -> SamplingParams:
    for stop in request.stops:
        check_text(stop, "stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: goes with stream; set stream to true", "stream_options")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=max(request.top_k, 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        stop=request.stops,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        seed=None if request.seed is None else request.seed & (2**63 - 1),
        logprobs=logprobs,
    )


def _temperature(request: Generation) -> float:
    return 1.0 if request.temperature is None else request.temperature


def completion_params(request: CompletionRequest) -> SamplingParams:
    """How to answer a completion. The engine generates a token at least, which max_tokens 0 does not show."""
    asked = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if asked == 0 and not request.echo:
        raise ApiError(400, "max_tokens: 0 goes with echo; ask for one token at least", "max_tokens")
    if request.echo and request.stream:
        raise ApiError(400, "echo: does not go with stream; set stream to false", "echo")
    params = _params(request, _temperature(request), max(asked, 1), request.logprobs)
    return replace(params, prompt_logprobs=request.logprobs if request.echo else None)


def chat_params(request: ChatRequest, room: int) -> SamplingParams:
    """How to answer a chat. room: tokens that the model's length leaves."""
    asked = request.max_completion_tokens or request.max_tokens or max(room, 1)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: goes with logprobs; set logprobs to true", "top_logprobs")
    return _params(request, _temperature(request), asked, (request.top_logprobs or 0) if request.logprobs else None)


def adds(request: Generation, prompts: list[list[int]], params: SamplingParams, request_id: str) -> list[Add]:
    """A request to the engine for each choice of each prompt. Choices of one seed differ by their place."""
    if len(prompts) * request.n > MOST_CHOICES:
        said = f"n: {len(prompts)} prompts with {request.n} choices each are more than {MOST_CHOICES} together"
        raise ApiError(400, said, "n")
    tenant = check_text(request.user or "default", "user")
    found: list[Add] = []
    for prompt in prompts:
        for choice in range(request.n):
            seed = params.seed if params.seed is None or choice == 0 else (params.seed + choice) & (2**63 - 1)
            own = replace(params, seed=seed)
            found.append(Add(f"{request_id}-{len(found)}", prompt, own, tenant, request.priority))
    return found


def new_id(kind: str) -> str:
    """An id for an answer: cmpl-..., chatcmpl-..."""
    return f"{kind}-{secrets.token_hex(12)}"
