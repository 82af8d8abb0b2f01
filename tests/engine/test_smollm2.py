"""SmolLM2-135M on 50 real prompts: the engine's greedy tokens are those of transformers, token for token in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from serveproof.engine.output import load_tokenizer
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start

# openings of encyclopedia articles, letters, code, lists and questions: 10 texts, cut at 5 places each
TEXTS = [
    "The Amazon rainforest, also called the Amazon jungle, is a moist broadleaf tropical rainforest that covers most "
    "of the Amazon basin of South America. This basin encompasses seven million square kilometres.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\nprint(",
    "Dear Ms Alvarez,\n\nthank you for your letter of 3 March. We have looked into the delay of your order and found",
    "Shopping list:\n- bread\n- milk\n- eggs\n- butter\n- apples\n- bananas\n- oranges\n- bread\n- milk\n- eggs\n-",
    "Q: The capital of France?\nA: Paris.\nQ: The capital of Japan?\nA: Tokyo.\nQ: The capital of",
    "In mathematics, a prime number is a natural number greater than 1 that is not a product of two smaller natural "
    "numbers. The first primes are 2, 3, 5, 7, 11, 13, 17, 19, 23,",
    "Once upon a time there was a little girl who lived in a village near the forest. When she went out, she wore",
    "The mitochondrion is an organelle found in the cells of most eukaryotes. It has two membranes and uses aerobic",
    "1914: the war begins. 1915: Gallipoli. 1916: the Somme. 1917: the Russian Revolution. 1918:",
    "To make pancakes, mix two cups of flour with one tablespoon of sugar, a pinch of salt, two eggs. Then slowly add",
]
NEW = 10


@pytest.fixture(scope="module")
def prompts(default_model: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(default_model / "tokenizer.json"))
    texts = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return [ids[: max(1, len(ids) * part // 5)] for ids in texts for part in range(1, 6)]


@torch.inference_mode()
def test_fifty_prompts_equal_transformers(default_model: Path, prompts: list[list[int]]) -> None:
    """Teacher-forced: each token of ours must be the argmax of transformers' forward over all before it, which is what
    greedy generation is, in one forward a prompt."""
    from transformers import AutoModelForCausalLM

    assert len(prompts) == 50
    theirs = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32).eval()
    settings = Settings("fp32", page_size=8, max_running=7, token_budget=48, max_model_len=128, blocks=90)
    engine = start(default_model, settings)
    done = engine.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True))
    assert engine.snapshot().used_blocks == 0
    for prompt, one in zip(prompts, done, strict=True):
        logits_LV = theirs(torch.tensor([prompt + one.tokens])).logits[0, len(prompt) - 1 : -1]
        assert one.tokens == logits_LV.argmax(-1).tolist()


def test_speculation_and_text(default_model: Path, prompts: list[list[int]]) -> None:
    """Drafts change nothing but the number of steps; text is the tokenizer's, cut at a stop string."""
    repetitive = prompts[15:20]  # the shopping list
    answers, steps = [], []
    for drafts in (0, 4):
        settings = Settings("fp32", max_running=5, token_budget=64, max_model_len=128, drafts=drafts)
        engine = start(default_model, settings)
        answers.append(engine.generate(repetitive, SamplingParams(max_tokens=24, ignore_eos=True)))
        steps.append(engine.steps)
    assert [one.tokens for one in answers[0]] == [one.tokens for one in answers[1]]
    assert steps[1] < steps[0]
    tokenizer = load_tokenizer(default_model)
    assert tokenizer is not None
    full = answers[0][4]
    assert full.text == tokenizer.decode(full.tokens, skip_special_tokens=True)
    stop = full.text[5:9]
    cut = engine.generate([repetitive[4]], SamplingParams(max_tokens=24, ignore_eos=True, stop=(stop,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == full.text[: full.text.index(stop)]
