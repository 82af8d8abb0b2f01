"""How long prompts and answers are, in tokens: a distribution, written as one word so that a config can hold it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serveproof.errors import UserError

FORMS = "fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:MOST"


@dataclass(frozen=True)
class Lengths:
    """fixed: always `low`. uniform: whole numbers from low to high. lognormal: median, sigma of the logarithm, cut at
    `high`; at least 1."""

    kind: str
    low: float
    high: float
    sigma: float = 0.0

    def draw(self, count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """So many lengths."""
        if self.kind == "fixed":
            return np.full(count, int(self.low), dtype=np.int64)
        if self.kind == "uniform":
            return generator.integers(int(self.low), int(self.high) + 1, count)
        drawn = generator.lognormal(np.log(self.low), self.sigma, count)
        return np.clip(np.rint(drawn), 1, self.high).astype(np.int64)


def parse(text: str, key: str) -> Lengths:
    """`uniform:16:64` and the like. UserError naming the key."""
    kind, *words = text.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    made = None
    if kind == "fixed" and len(numbers) == 1:
        made = Lengths(kind, numbers[0], numbers[0])
    elif kind == "uniform" and len(numbers) == 2:
        made = Lengths(kind, numbers[0], numbers[1])
    elif kind == "lognormal" and len(numbers) == 3 and numbers[1] > 0:
        made = Lengths(kind, numbers[0], numbers[2], numbers[1])
    if made is None or not 1 <= made.low <= made.high:
        raise UserError(f"{key}: '{text}' is no length; give {FORMS}, from 1 up")
    return made
