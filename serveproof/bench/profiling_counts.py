"""Counts the useful work of every operation of one call: floating-point operations and the fewest bytes to move.

FLOPs are torch's own formulas (torch.utils.flop_counter); attention's are counted here, for torch leaves out the CPU's
kernel and the half that a causal mask saves. Bytes: each input read and each output written once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Read of their first input only as much as they write.
GATHERS = {"aten::embedding", "aten::index", "aten::index_select", "aten::gather", "aten::select_scatter", "aten::take"}
# Write of their first input only as much as their values hold.
SCATTERS = {"aten::index_put_", "aten::index_copy_", "aten::scatter_", "aten::_index_put_impl_"}
# Write their first input without reading it.
FILLS = {"aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_"}
GROUPED = {"aten::_grouped_mm", "aten::_scaled_grouped_mm"}
# Names of operations that compute more than their elements: without a formula their work is unknown, not zero.
COMPUTES = re.compile(r"mm\b|_mm_|linear|conv|attention|matmul|einsum|lstm|gru|rnn")
FREE = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::detach"}


@dataclass
class Work:
    """What one operation on these shapes does, a call of it: FLOPs, bytes, the dtype of its first tensor."""

    flops: float
    bytes: float
    dtype: str


@dataclass
class Counted:
    """The work of every (operation, shapes) of a call, and how often it ran."""

    work: dict[tuple[str, str], Work] = field(default_factory=dict)
    times: dict[tuple[str, str], int] = field(default_factory=dict)
    answers: dict[tuple[str, str], Work | None] = field(default_factory=dict)

    def of(self, name: str, shapes: str) -> Work | None:
        """A call's work; where a trace tells fewer shapes (it leaves lists out), the mean of all that fit."""
        if (name, shapes) not in self.answers:
            self.answers[name, shapes] = self.work.get((name, shapes)) or self._mean(name, shapes)
        return self.answers[name, shapes]

    def _mean(self, name: str, shapes: str) -> Work | None:
        fits = [key for key in self.work if key[0] == name and key[1].startswith(shapes)]
        times = sum(self.times[key] for key in fits)
        if not times:
            return None
        flops = sum(self.work[key].flops * self.times[key] for key in fits) / times
        moved = sum(self.work[key].bytes * self.times[key] for key in fits) / times
        return Work(flops, moved, self.work[fits[0]].dtype)

    def times_of(self, name: str, shapes: str) -> int:
        """How often an operation ran in a call."""
        fits = (key for key in self.times if key[0] == name and key[1].startswith(shapes))
        return self.times.get((name, shapes)) or sum(self.times[key] for key in fits)


def count(run: Callable[[], Any]) -> Counted:
    """Run once under a dispatch mode that counts. What torch doesn't dispatch (Triton, libraries) isn't in it."""
    counted = Counted()
    with _Counting(counted):
        run()
    return counted


class _Counting(TorchDispatchMode):
    def __init__(self, counted: Counted) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not hasattr(func, "_schema"):  # what torch calls a higher-order operator
            return func(*args, **(kwargs or {}))
        # In inference mode whole compositions arrive (linear, attention): what they are made of has the formulas.
        with self:
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        inputs = list(_tensors((args, kwargs or {})))
        key = (name, " ".join(str(list(one.shape)) for one in inputs if one.dim()))
        self.counted.times[key] = self.counted.times.get(key, 0) + 1
        if key not in self.counted.work:
            first = next((one for one in inputs if one.is_floating_point()), None)
            dtype = str(first.dtype).removeprefix("torch.") if first is not None else ""
            flops = _flops(func, args, kwargs or {}, out)
            if flops is not None:
                self.counted.work[key] = Work(flops, _bytes(func, name, inputs, out), dtype)
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float | None:
    """FLOPs of products and attention, 0 of what only moves; None where the operation computes by no known formula."""
    name = func._schema.name
    if "dot_product" in name and "backward" not in name:
        return _attention_flops(func, args, kwargs)
    if name in GROUPED:
        return _grouped_flops(args[0], args[1])
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return float(formula(*args, **kwargs, out_val=out))
    return None if not name.startswith("aten::") or COMPUTES.search(name) else 0.0


def _grouped_flops(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 M K N, groups that share a dimension counted once and those that are a dimension of their own each."""
    groups = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return 2.0 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _attention_flops(func: Any, args: Any, kwargs: Any) -> float:
    """4 B H Lq Lk D, of which a causal mask over equal lengths leaves (L + 1) / 2L."""
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    q_BHLE, k_BKLE = args[0], args[1]
    B, H, Lq, E = q_BHLE.shape
    Lk = k_BKLE.shape[-2]
    causal = bool(given.get("is_causal", False)) and Lq == Lk
    return 4.0 * float(B * H * Lq * Lk * E) * ((Lk + 1) / (2 * Lk) if causal else 1.0)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _size(one: torch.Tensor) -> int:
    """Bytes that the tensor's elements lie in: an expanded dimension is there once."""
    elements = 1
    for length, stride in zip(one.shape, one.stride(), strict=True) if one.layout == torch.strided else ():
        elements *= length if stride else 1
    return elements * one.element_size()


def _bytes(func: Any, name: str, inputs: list[torch.Tensor], out: Any) -> float:
    writes = any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)
    there = {one.untyped_storage().data_ptr() for one in inputs}
    views = not writes and any(one.untyped_storage().data_ptr() in there for one in _tensors(out))
    if views or name in FREE:
        return 0.0
    outputs = sum(map(_size, _tensors(out)))
    read = sum(map(_size, inputs))
    if name in GATHERS and inputs:
        return read - _size(inputs[0]) + 2.0 * outputs
    if name in SCATTERS and inputs:
        return read - _size(inputs[0]) + float(_size(inputs[-1]))
    if name in FILLS and inputs:
        return read - _size(inputs[0]) + float(outputs)
    return float(read + outputs)
