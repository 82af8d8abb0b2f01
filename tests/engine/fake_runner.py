"""A runner whose "model" is a hash of the tokens that it reads through the block table: wrong blocks give wrong tokens.

Its cache keeps token ids by (block, offset), as the real one keeps keys and values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from serveproof.engine.sequence import PLACEHOLDER, Chunk, Sampled, Step

VOCABULARY = 7  # small, so that text repeats and drafts are accepted


def next_token(tokens: list[int]) -> int:
    """What the model answers to these tokens. The last ones weigh most, so that n-grams come back."""
    far = random.Random(repr(tokens)).random() < 0.3  # noqa: S311
    return random.Random(repr(tokens if far else tokens[-2:])).randrange(VOCABULARY)  # noqa: S311


def answer(prompt: list[int], count: int, stop: frozenset[int] = frozenset()) -> list[int]:
    """The plain sequential answer."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


@dataclass
class Ready:
    results: list[Sampled]

    def result(self) -> list[Sampled]:
        return self.results


class FakeRunner:
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.cache: dict[tuple[int, int], int] = {}
        self.host: dict[tuple[int, int], int] = {}
        self.last: dict[int, int] = {}  # slot -> its last sampled token

    def launch(self, step: Step) -> Ready:
        for block, host in step.swap_out:
            for offset in range(self.page_size):
                self.host[host, offset] = self.cache.get((block, offset), -7)
        for host, block in step.swap_in:
            for offset in range(self.page_size):
                self.cache[block, offset] = self.host[host, offset]
        return Ready([result for chunk in step.chunks if (result := self.run(chunk)) is not None])

    def run(self, chunk: Chunk) -> Sampled | None:
        sequence = chunk.sequence
        fed = [*sequence.tokens[chunk.start : chunk.context], *chunk.drafts]
        fed = [self.last[sequence.slot] if token == PLACEHOLDER else token for token in fed]
        for position, token in enumerate(fed, chunk.start):
            block = sequence.blocks[position // self.page_size]
            assert block != 0
            self.cache[block, position % self.page_size] = token
        if not chunk.samples:
            return None
        accepted: list[int] = []
        for length in range(chunk.context, chunk.context + len(chunk.drafts) + 1):
            accepted.append(next_token(self.read(sequence.blocks, length)))
            index = length - chunk.context
            if index < len(chunk.drafts) and chunk.drafts[index] != accepted[-1]:
                break
        self.last[sequence.slot] = accepted[-1]
        return Sampled(tuple(accepted))

    def read(self, blocks: list[int], length: int) -> list[int]:
        return [self.cache[blocks[p // self.page_size], p % self.page_size] for p in range(length)]
