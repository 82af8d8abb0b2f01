"""How evenly tenants were served, from what the client saw.

Service is counted as the virtual token counter counts it: 1 a prompt token, 2 an output token (Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024, arXiv 2401.00588). A prompt counts when its first token arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from serveproof.load_test.metrics import Served

Floats = npt.NDArray[np.float64]
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0


def jain(shares: Sequence[float]) -> float:
    """Jain's index (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything (Jain, Chiu, Hawe, DEC
    TR-301, 1984)."""
    x = np.asarray(shares, dtype=np.float64)
    squares = float((x * x).sum())
    return float(x.sum() ** 2 / (len(x) * squares)) if squares else 1.0


def max_min(demands: Sequence[float], capacity: float) -> list[float]:
    """The max-min fair division: nobody gets more than it asks, what is left is divided evenly among the others."""
    given = [0.0] * len(demands)
    left, open_ = capacity, sorted(range(len(demands)), key=lambda i: demands[i])
    for position, index in enumerate(open_):
        share = left / (len(open_) - position)
        given[index] = min(demands[index], share)
        left -= given[index]
    return given


def service(requests: Sequence[Served], start_ns: int) -> tuple[Floats, Floats]:
    """(times in s, service each brought), ascending."""
    times: list[float] = []
    amounts: list[float] = []
    for one in requests:
        stamps = [(stamp - start_ns) / 1e9 for stamp in one.outcome.chunk_ns]
        if not stamps:
            continue
        times += [stamps[0], *stamps]
        amounts += [PROMPT_WEIGHT * one.prompt_tokens, *(OUTPUT_WEIGHT * count for count in one.outcome.chunk_tokens)]
    order = np.argsort(times, kind="stable")
    return np.asarray(times, dtype=np.float64)[order], np.asarray(amounts, dtype=np.float64)[order]


def index(
    by_tenant: dict[str, list[Served]], asked: dict[str, float], start_ns: int, begin_s: float, end_s: float
) -> float:
    """Jain's index of what each tenant got in the window over what a max-min fair division of all that was served there
    would have given it; `asked` is the service that each tenant's requests of the window call for."""
    got = []
    for requests in by_tenant.values():
        times, amounts = service(requests, start_ns)
        got.append(float(amounts[(times >= begin_s) & (times < end_s)].sum()))
    wanted = [max(asked[name], 0.0) for name in by_tenant]
    entitled = max_min(wanted, sum(got))
    return jain([one / due for one, due in zip(got, entitled, strict=True) if due > 0])


def waiting_spans(requests: Sequence[Served]) -> list[tuple[float, float]]:
    """When a tenant had a request waiting for its first token (or its error), as disjoint spans in s."""
    spans: list[tuple[float, float]] = []
    for one in sorted(requests, key=lambda served: served.intended_s):
        end = one.intended_s + one.ttft_ms / 1e3 if one.ttft_ms is not None else one.done_s
        if spans and one.intended_s <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((one.intended_s, end))
    return spans


def _common(left: list[tuple[float, float]], right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return [(begin, end) for begin, end in found if begin < end]


def largest_gap(by_tenant: dict[str, list[Served]], start_ns: int) -> float:
    """The most that one tenant's service ran ahead of another's over any stretch in which both had a request waiting.

    VTC bounds it for tenants that are backlogged: one whose wishes are met is owed nothing. The client sees a backlog
    as a request without its first token.
    """
    largest = 0.0
    spans = {name: waiting_spans(requests) for name, requests in by_tenant.items()}
    served = {name: service(requests, start_ns) for name, requests in by_tenant.items()}
    for one, other in combinations(by_tenant, 2):
        times = np.concatenate([served[one][0], served[other][0]])
        steps = np.concatenate([served[one][1], -served[other][1]])
        order = np.argsort(times, kind="stable")
        times, steps = times[order], steps[order]
        for begin, end in _common(spans[one], spans[other]):
            low, high = np.searchsorted(times, (begin, end), side="left")
            ahead = np.concatenate([[0.0], np.cumsum(steps[low:high])])
            largest = max(largest, float(ahead.max() - ahead.min()))
    return largest
