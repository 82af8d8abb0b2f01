"""Who owns which block of the KV cache: reference counts, and blocks found again by their content.

A block holds the keys and values of page_size tokens. A full block's content is named by a hash of its tokens and of
the hash of all before it, so a prompt that begins like an earlier one shares its blocks without a copy (vLLM's
automatic prefix caching; SGLang's RadixAttention, arXiv 2312.07104, keeps a tree instead). Block 0 is nobody's:
padding is written there.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque

from serveproof.engine.sequence import Sequence

ROOT = b""


class BlockManager:
    """Device blocks 1 to blocks - 1, and host blocks 0 to host_blocks - 1 for swapping."""

    def __init__(self, blocks: int, page_size: int, host_blocks: int = 0, prefix_caching: bool = True) -> None:
        self.page_size, self.usable, self.prefix_caching = page_size, blocks - 1, prefix_caching
        self.free = deque(range(1, blocks))
        self.kept: OrderedDict[int, None] = OrderedDict()  # unused, content still good; least recently used first
        self.references = [0] * blocks
        self.block_of: dict[bytes, int] = {}
        self.content: dict[int, tuple[bytes, bytes, tuple[int, ...]]] = {}  # block -> key, key before, tokens
        self.free_host = deque(range(host_blocks))
        self.hit_tokens = self.asked_tokens = 0
        self.dirty: list[int] = []  # left by failed sequences, to be zeroed before the next step

    @property
    def available(self) -> int:
        """Blocks that can be had, those with kept content included."""
        return len(self.free) + len(self.kept)

    def pages(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.page_size)

    def take(self) -> int:
        """A block of its own; the oldest kept content is forgotten for it. `available` must not be 0."""
        if self.free:
            block = self.free.popleft()
        else:
            block, _ = self.kept.popitem(last=False)
            self._forget(block)
        self.references[block] = 1
        return block

    def find(self, tokens: list[int]) -> tuple[list[int], list[bytes]]:
        """(blocks, their keys) that hold the longest known beginning of `tokens`, of which at least one token is left.

        Nothing is taken. Tokens are compared, not hashes alone: a collision must not serve another's content.
        """
        blocks: list[int] = []
        keys: list[bytes] = []
        before = ROOT
        if self.prefix_caching:
            for page in range((len(tokens) - 1) // self.page_size):
                part = self._part(tokens, page)
                key = key_of(before, part)
                block = self.block_of.get(key, 0)
                if not block or self.content[block][1:] != (before, part):
                    break
                blocks.append(block)
                keys.append(key)
                before = key
        return blocks, keys

    def adopt(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """(pages, blocks): a block for each leading page of `tokens` that `find` would use and does not know yet.

        The caller writes their keys and values, computed elsewhere, before the next step. As many as can be had;
        prefix_caching must be on, for content that comes from elsewhere is found by its name.
        """
        known, keys = self.find(tokens)
        before = keys[-1] if keys else ROOT
        pages: list[int] = []
        blocks: list[int] = []
        for page in range(len(known), (len(tokens) - 1) // self.page_size if self.prefix_caching else 0):
            part = self._part(tokens, page)
            key = key_of(before, part)
            # a later page may be known although an earlier one was forgotten
            if key not in self.block_of:
                if not self.free:
                    break
                block = self.free.popleft()
                self.block_of[key], self.content[block] = block, (key, before, part)
                pages.append(page)
                blocks.append(block)
            before = key
        for block in reversed(blocks):
            self.kept[block] = None
        return pages, blocks

    def unused(self, blocks: list[int]) -> int:
        """How many of these count as available now: sharing them takes them away."""
        return sum(not self.references[block] for block in blocks)

    def share(self, sequence: Sequence, blocks: list[int], keys: list[bytes]) -> None:
        """Begin a sequence's table with blocks that `find` found."""
        for block in blocks:
            if not self.references[block]:
                del self.kept[block]
            self.references[block] += 1
        sequence.blocks, sequence.keys = list(blocks), list(keys)
        self.asked_tokens += len(sequence.tokens)
        self.hit_tokens += len(blocks) * self.page_size

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Lengthen a sequence's table until it holds so many tokens; False if blocks ran out."""
        missing = self.pages(tokens) - len(sequence.blocks)
        if missing > self.available:
            return False
        for _ in range(missing):
            sequence.blocks.append(self.take())
        return True

    def publish(self, sequence: Sequence, known: int) -> None:
        """Name the content of the sequence's blocks that its first `known` tokens, all computed, have filled."""
        if not self.prefix_caching:
            return
        for page in range(len(sequence.keys), known // self.page_size):
            before = sequence.keys[-1] if page else ROOT
            part = self._part(sequence.tokens, page)
            key, block = key_of(before, part), sequence.blocks[page]
            sequence.keys.append(key)
            if key not in self.block_of and block not in self.content:
                self.block_of[key] = block
                self.content[block] = (key, before, part)

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's device blocks back; named content is kept, the end to be forgotten before the beginning."""
        for block in reversed(sequence.blocks):
            self.references[block] -= 1
            if self.references[block]:
                continue
            if block in self.content:
                self.kept[block] = None
            else:
                self.free.append(block)
        sequence.blocks, sequence.keys = [], []

    def discard(self, sequence: Sequence) -> None:
        """`release` for a sequence that failed: what it alone holds is forgotten, and must be zeroed."""
        own = [block for block in sequence.blocks if self.references[block] == 1]
        for block in own:
            if block in self.content:
                self._forget(block)
        self.dirty += own
        self.release(sequence)

    def swap_out(self, sequence: Sequence) -> tuple[tuple[int, int], ...]:
        """Move a sequence to host blocks: the (device, host) copies to make. There must be enough host blocks."""
        sequence.host_blocks = [self.free_host.popleft() for _ in sequence.blocks]
        copies = tuple(zip(sequence.blocks, sequence.host_blocks, strict=True))
        self.release(sequence)
        return copies

    def swap_in(self, sequence: Sequence) -> tuple[tuple[int, int], ...]:
        """Back into device blocks: the (host, device) copies to make. There must be enough blocks."""
        sequence.blocks = [self.take() for _ in sequence.host_blocks]
        copies = tuple(zip(sequence.host_blocks, sequence.blocks, strict=True))
        self.drop_host(sequence)
        return copies

    def forget_kept(self) -> None:
        """Forget the content of all unused blocks: what comes next finds no prefix of what was before."""
        while self.kept:
            block, _ = self.kept.popitem()
            self._forget(block)
            self.free.append(block)

    def _forget(self, block: int) -> None:
        del self.block_of[self.content.pop(block)[0]]

    def _part(self, tokens: list[int], page: int) -> tuple[int, ...]:
        return tuple(tokens[page * self.page_size : (page + 1) * self.page_size])

    def drop_host(self, sequence: Sequence) -> None:
        """Give a sequence's host blocks back."""
        self.free_host.extend(sequence.host_blocks)
        sequence.host_blocks = []


def key_of(before: bytes, tokens: tuple[int, ...]) -> bytes:
    """The name of a block's content, of all tokens up to its end."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()
