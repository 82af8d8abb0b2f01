"""What clients may send: OpenAI's fields with vLLM's additions, each with its range. An unknown field is refused, for a
setting that is silently ignored is a wrong answer that nobody notices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from serveproof.engine.sequence import MOST_LOGPROBS

MOST_CHOICES, MOST_STOPS, MOST_STOP_CHARACTERS, MOST_PROMPTS = 128, 16, 256, 128
MOST_TOKENS = 2**31 - 1

Finite = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(strict=True, ge=0, le=MOST_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
Name = Annotated[str, Field(max_length=256)]
Unsupported = Annotated[None, Field(description="not supported: leave it out")]
Zero = Annotated[float, Field(ge=0, le=0, description="not supported: leave it at 0")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """What a stream says beside its text."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False


class Generation(_Strict):
    """What both ways of asking for text share."""

    model: Name
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] = 1
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=MOST_TOKENS)] = 0
    min_p: Annotated[Finite, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] = 1.0
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Unsupported = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MOST_STOPS)] = []
    ignore_eos: StrictBool = False
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: Annotated[Name, Field(description="the tenant, for fair scheduling")] | None = None
    priority: Annotated[StrictInt, Field(ge=-(2**31), lt=2**31, description="smaller goes first")] = 0

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as few as they are."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


Tokens = Annotated[list[Token], Field(min_length=1)]
Prompt = (
    str
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
)


class CompletionRequest(Generation):
    """POST /v1/completions. max_tokens 0 goes with echo: the prompt is scored, and nothing is generated."""

    prompt: Prompt
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MOST_TOKENS)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: StrictBool = False
    best_of: Annotated[StrictInt, Field(ge=1, le=1, description="not supported: leave it out")] | None = None
    suffix: Unsupported = None
    add_special_tokens: StrictBool = True


class TextPart(_Strict):
    """A piece of a message's content; this server reads text only."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Name | None = None

    def as_dict(self) -> dict[str, Any]:
        """As chat templates read it: the content is one text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name else {})


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(Generation):
    """POST /v1/chat/completions. Without a limit the answer may fill the model's length."""

    messages: Messages
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Unsupported = None
    response_format: Unsupported = None


class TokenizeRequest(_Strict):
    """POST /tokenize: a text, or a conversation through the chat template."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: StrictBool = True


class Fault(BaseModel):
    """What went wrong, in OpenAI's fields."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: Fault
