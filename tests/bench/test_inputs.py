"""Refilling: in place, new values, integers untouched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serveproof.bench.inputs import Refill


def pair_of(make_inputs: Any) -> Any:
    return SimpleNamespace(baseline=SimpleNamespace(make_inputs=make_inputs))


def test_values_change_in_place_and_integers_stay() -> None:
    def make_inputs(axes: Any, device: str, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(8, generator=generator), "n": torch.arange(3), "causal": True}

    refill = Refill(pair_of(make_inputs), {}, "cpu", 0)
    x = refill.live["x"]
    seen = [x.clone()]
    for refresh in (refill.next, refill.next, refill.fresh, refill.next, refill.fresh):
        refresh()
        assert refill.live["x"] is x
        assert not torch.equal(x, seen[-1])
        seen.append(x.clone())
    # kept sets come round again; fresh ones never do
    assert torch.equal(seen[1], seen[4])
    assert not any(torch.equal(seen[i], seen[j]) for i in (3, 5) for j in range(6) if i != j)
    assert torch.equal(refill.live["n"], torch.arange(3))


def test_integers_that_follow_the_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="'lengths' changes with the seed"):
        Refill(pair_of(lambda axes, device, seed: {"lengths": torch.tensor([seed])}), {}, "cpu", 0)
