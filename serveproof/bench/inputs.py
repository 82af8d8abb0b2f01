"""A pair's inputs: several value sets a case, refilled in place between calls so that no cached output passes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from serveproof.pairs import Inputs, Pair


def floating_names(inputs: Inputs) -> list[str]:
    """The inputs that a refill rewrites: floating-point tensors (float8 too)."""
    return [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]


class Refill:
    """Live inputs that both sides were built on, and `sets` further value sets to copy into them in place.

    The contract: shapes and integer inputs depend on the axes alone, floating-point values on the seed. Integer
    tensors are checked once: a problem whose block table changed with the seed would be verified against another.
    """

    def __init__(self, pair: Pair, axes: dict[str, Any], device: str, seed: int, sets: int = 2) -> None:
        self.make = partial(pair.baseline.make_inputs, axes, device)
        self.live: Inputs = self.make(seed)
        self.names = floating_names(self.live)
        self.sources: list[Inputs] = []
        for number in range(1, sets + 1):
            fresh = self.make(seed + number)
            for name, value in self.live.items():
                if name not in self.names and isinstance(value, torch.Tensor) and not torch.equal(value, fresh[name]):
                    raise ValueError(f"make_inputs: integer input '{name}' changes with the seed; only floats may")
            self.sources.append({name: fresh[name] for name in self.names})
        self.turn = 0
        self.unused_seed = seed + sets + 1

    def next(self) -> None:
        """Copy the next of the kept value sets into the live inputs, in place: quick, for timed rounds."""
        self._copy(self.sources[self.turn % len(self.sources)])
        self.turn += 1

    def fresh(self) -> None:
        """Refill with values that were never there before: what is checked can't have been seen."""
        self._copy(self.make(self.unused_seed))
        self.unused_seed += 1

    def _copy(self, source: Inputs) -> None:
        for name in self.names:
            self.live[name].copy_(source[name])
