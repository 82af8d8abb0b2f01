"""Greedy answers to fixed prompts, held against the model's own choices token by token.

While all tokens before are equal, equal choices mean equal answers: one forward pass over prompt and answer is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from serveproof.accuracy_records import GreedyCheck
from serveproof.bench.windows import Integers
from serveproof.engine.engine import Engine
from serveproof.engine.model import Llama
from serveproof.engine.sequence import SamplingParams
from serveproof.errors import UserError

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 4, 32, 24


@dataclass
class Answers:
    """Greedy answers: tokens of each prompt, the NLL of each as the engine gave it, accepted drafts of all."""

    tokens: list[list[int]]
    nll_nats: list[list[float]]
    drafts: int


def make_prompts(tokens: Integers) -> list[list[int]]:
    """Fixed prompts from a text's end: every second repeats its first half, so that n-gram drafts find something."""
    if len(tokens) < PROMPTS * PROMPT_TOKENS:
        raise UserError(
            f"the text has {len(tokens)} tokens, and {PROMPTS} prompts take {PROMPT_TOKENS} each; give a longer text, "
            f"or no paths"
        )
    pieces = np.asarray(tokens[-PROMPTS * PROMPT_TOKENS :]).reshape(PROMPTS, PROMPT_TOKENS).tolist()
    half = PROMPT_TOKENS // 2
    return [piece[:half] * 2 if number % 2 else piece for number, piece in enumerate(pieces)]


def answer(engine: Engine, prompts: list[list[int]]) -> Answers:
    """The engine's greedy answers, with the log-probability that it gave each of its tokens."""
    found = Answers([[] for _ in prompts], [[] for _ in prompts], 0)
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True, logprobs=0))
    while engine.busy:
        for output in engine.step():
            number = int(output.request_id)
            found.tokens[number] += output.tokens
            pairs = zip(output.tokens, output.logprobs, strict=True)
            found.nll_nats[number] += [-own[token] for token, own in pairs]
            found.drafts += max(0, len(output.tokens) - 1)
    return found


@torch.inference_mode()
def held_against(model: Llama, prompts: list[list[int]], answers: Answers) -> tuple[GreedyCheck, list[list[float]]]:
    """The answers against the model's own greedy choices, and the model's NLL of each of their tokens.

    One forward pass over prompt and answer: up to the first other token this is what decoding token by token gives.
    """
    first: list[int | None] = []
    gap, nll = 0.0, []
    device = model.embed_tokens.weight.device
    for prompt, own in zip(prompts, answers.tokens, strict=True):
        hidden_LD = model.full(torch.tensor([prompt + own], device=device))[0]
        logits_AV = model.logits(hidden_LD[len(prompt) - 1 : -1]).float()
        tokens_A1 = torch.tensor(own, device=device)[:, None]
        nll.append((-logits_AV.log_softmax(-1).gather(1, tokens_A1)[:, 0]).tolist())
        # A tie is no other choice: bf16 logits often have one. Between logits the steps stay whole, which a softmax's
        # rounding breaks.
        short_A = logits_AV.max(-1).values - logits_AV.gather(1, tokens_A1)[:, 0]
        others = (short_A > 0).nonzero()[:, 0].tolist()
        first.append(others[0] if others else None)
        gap = max(gap, float(short_A[others[0]]) if others else 0.0)
    count = sum(map(len, answers.tokens))
    check = GreedyCheck(len(prompts), count, first.count(None), first, gap, answers.drafts)
    return check, nll
