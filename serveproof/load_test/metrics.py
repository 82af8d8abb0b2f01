"""The formulas: what one request's stamps, and a window of requests, come to. docs/load_test.md holds them beside those
of other tools. Everything counts from the intended arrival."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serveproof.load_records import Slo
from serveproof.load_test.outcomes import Outcome, Planned

Floats = npt.NDArray[np.float64]
MS = 1e6
MAX_LAG_P99_MS = 10.0
FEWEST_SLICES = 10  # a window shorter than so many seconds is cut finer: bootstrap.interval takes 8 or more


@dataclass(frozen=True)
class Served:
    """One request in figures; None where it has none (no token, or one token alone for TPOT)."""

    number: int
    tenant: str
    kind: str
    intended_s: float
    lag_ms: float
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    gaps_ms: list[float]
    prompt_tokens: int
    output_tokens: int
    done_s: float
    outcome: Outcome

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return self.outcome.ending == "ok"

    def good(self, slo: Slo) -> bool:
        """Whether it came whole and within the SLO; an error never is."""
        if not self.ok or self.ttft_ms is None or self.ttft_ms > slo.ttft_ms:
            return False
        return self.tpot_ms is None or self.tpot_ms <= slo.tpot_ms


def served(outcomes: Iterable[Outcome], planned: dict[int, Planned], start_ns: int) -> list[Served]:
    """Each outcome in figures, in the order given."""
    return [_served(one, planned[one.number], start_ns) for one in outcomes]


def _served(one: Outcome, plan: Planned, start_ns: int) -> Served:
    written = one.written_ns or one.sent_ns or one.done_ns
    stamps = np.asarray(one.chunk_ns, dtype=np.int64)
    first, end, tokens = (one.chunk_ns[0] if one.chunk_ns else 0), one.end_ns, one.output_tokens
    return Served(
        number=one.number,
        tenant=plan.tenant,
        kind=plan.kind,
        intended_s=(one.intended_ns - start_ns) / 1e9,
        lag_ms=(written - one.intended_ns) / MS,
        ttft_ms=(one.first_ns - one.intended_ns) / MS if one.first_ns else None,
        tpot_ms=(end - first) / MS / (tokens - 1) if tokens > 1 else None,
        e2e_ms=(end - one.intended_ns) / MS if one.ending == "ok" and end else None,
        gaps_ms=[float(gap) / MS for gap in np.diff(stamps)],
        prompt_tokens=one.prompt_tokens or plan.prompt_tokens,
        output_tokens=tokens,
        done_s=(one.done_ns - start_ns) / 1e9,
        outcome=one,
    )


def values(requests: Iterable[Served], name: str) -> Floats:
    """One figure of the requests that were answered whole and have it: ttft, tpot, e2e, or every gap."""
    whole = [one for one in requests if one.ok]
    if name == "gap":
        return np.asarray([gap for one in whole for gap in one.gaps_ms], dtype=np.float64)
    found = [getattr(one, f"{name}_ms") for one in whole]
    return np.asarray([value for value in found if value is not None], dtype=np.float64)


def good_rates(requests: Iterable[Served], slo: Slo, begin_s: float, end_s: float) -> Floats:
    """Requests a second that ended well in [begin_s, end_s), whenever they arrived, in each slice of it."""
    slices, width_s = _slices(begin_s, end_s)
    done = np.asarray([one.done_s for one in requests if one.good(slo) and begin_s <= one.done_s < end_s])
    return np.bincount(_slice_of(done, begin_s, slices, width_s), minlength=slices) / width_s


def _slices(begin_s: float, end_s: float) -> tuple[int, float]:
    """Equal slices of about a second, or of a tenth of a short window: (how many, how long)."""
    slices = max(FEWEST_SLICES, round(end_s - begin_s))
    return slices, (end_s - begin_s) / slices


def _slice_of(times_s: Floats, begin_s: float, slices: int, width_s: float) -> npt.NDArray[np.int64]:
    return np.minimum((times_s - begin_s) // width_s, slices - 1).astype(np.int64)


def token_rates(requests: Iterable[Served], start_ns: int, begin_s: float, end_s: float) -> Floats:
    """Output tokens a second that arrived in [begin_s, end_s), whoever asked for them and when, in each slice of it."""
    slices, width_s = _slices(begin_s, end_s)
    counts = np.zeros(slices)
    for one in requests:
        stamps = (np.asarray(one.outcome.chunk_ns, dtype=np.int64) - start_ns) / 1e9
        inside = (stamps >= begin_s) & (stamps < end_s)
        at = _slice_of(stamps[inside], begin_s, slices, width_s)
        counts += np.bincount(at, np.asarray(one.outcome.chunk_tokens, dtype=np.float64)[inside], slices)
    return counts / width_s


def outstanding(requests: Sequence[Served], at_s: Floats) -> npt.NDArray[np.int64]:
    """How many requests were between intended arrival and end at each of these times."""
    begun = np.searchsorted(np.sort([one.intended_s for one in requests]), at_s, side="right")
    ended = np.searchsorted(np.sort([one.done_s for one in requests]), at_s, side="right")
    return np.asarray(begun - ended, dtype=np.int64)


def why_invalid(requests: Sequence[Served], loop_lag_ms: Sequence[float]) -> str:
    """Why the client itself can't be trusted in this run; '' when it can.

    Its send lag is from the intended arrival to the headers' writing on a connection that is there, so it is judged
    where the client alone decides: a server that is slow to accept makes `written` late, not the client. The beat of
    its loop says how late it stamps what arrives.
    """
    lag = float(np.percentile([send_lag_ms(one) for one in requests], 99))
    if lag > MAX_LAG_P99_MS:
        return f"the client sent late: lag p99 {lag:.1f} ms, more than {MAX_LAG_P99_MS:g} ms; use more client processes"
    beat = float(np.percentile(loop_lag_ms, 99)) if len(loop_lag_ms) else 0.0
    if beat > MAX_LAG_P99_MS:
        return f"the client was busy: its loop ran late by {beat:.1f} ms at p99, more than {MAX_LAG_P99_MS:g} ms"
    return ""


def send_lag_ms(one: Served) -> float:
    """From the intended arrival to the moment the client turned to the request."""
    return (one.outcome.sent_ns - one.outcome.intended_ns) / MS
