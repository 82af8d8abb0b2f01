"""MLPerf's rule for when enough queries were seen to say that a percentile holds.

h queries within the latency and t beyond it prove, with confidence c, that at least a share p - d of all queries is
within it, when so few failures would be seen by chance with probability below 1 - c: I_{p-d}(h, t + 1) < 1 - c, the
regularised incomplete beta function (MLCommons inference policies, "Early stopping"; loadgen/early_stopping.cc, p and
c 0.99, d 0).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """The percentile to prove, with what confidence, and the tolerance d."""

    percentile: float = 0.99
    confidence: float = 0.99
    tolerance: float = 0.0


def proven(within: int, beyond: int, rule: Rule) -> bool:
    """Whether so many queries within the limit, and so many beyond it, prove the percentile."""
    from scipy.special import betainc  # slow to import: only where a rate is judged

    if within == 0:
        return False
    return bool(betainc(within, beyond + 1, rule.percentile - rule.tolerance) < 1 - rule.confidence)


def disproven(within: int, beyond: int, rule: Rule) -> bool:
    """Whether they prove the opposite: so many failures would be seen by chance with probability below 1 - c if the
    percentile held."""
    from scipy.special import betainc

    if beyond == 0:
        return False
    return bool(betainc(beyond, within + 1, 1 - rule.percentile) < 1 - rule.confidence)


def queries_needed(beyond: int, rule: Rule) -> int:
    """How many queries in all, with so many of them beyond the limit, prove the percentile at the least."""
    low, high = 1, 2
    while not proven(high, beyond, rule):
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle, beyond, rule) else (middle + 1, high)
    return low + beyond
