"""Names for what runs, as NVTX ranges and as ranges of torch's profiler: the engine's phases, a pair's timed region.

Off unless SERVEPROOF_RANGES=1 is set when the process starts. Off, `ranged` hands the function back as it is, which
costs nothing, and `span` hands out one shared object that does nothing. A decoder's layers take `ranged`, a step's few
blocks take `span`. docs/profiling.md has what both cost, measured.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

DOMAIN = "serveproof"
PHASES = ("schedule", "prefill", "decode", "attention", "mlp", "all_reduce", "sample")
TIMED = "timed"
ON = os.environ.get("SERVEPROOF_RANGES") == "1"
_NOTHING: AbstractContextManager[Any] = nullcontext()
F = TypeVar("F", bound=Callable[..., Any])


def span(name: str) -> AbstractContextManager[Any]:
    """A range around a block: `with span("schedule"): ...`."""
    return _named(name) if ON else _NOTHING


def ranged(name: str, function: F) -> F:
    """`function` within a range of that name; off, the function itself."""
    if not ON:
        return function

    @functools.wraps(function)
    def inside(*arguments: Any, **named: Any) -> Any:
        import torch

        if torch.compiler.is_compiling():  # a range would break the graph; compiled code is one piece
            return function(*arguments, **named)
        with _named(name):
            return function(*arguments, **named)

    return inside  # type: ignore[return-value]


def _named(name: str) -> AbstractContextManager[Any]:
    import nvtx
    import torch

    both = ExitStack()
    both.enter_context(nvtx.annotate(name, domain=DOMAIN))
    both.enter_context(torch.profiler.record_function(name))
    return both
