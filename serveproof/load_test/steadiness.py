"""Whether a run had warmed up, and whether it was steady after that. Both are found in the data, neither is assumed.

Warm-up: MSER-5 (White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69(6),
1997): of all places in the first half to cut the beginning off, the one after which the mean's standard error is
smallest, over means of five.
Steadiness: the rest in ten batches; a trend over the batch means (Kendall's tau) that is unlikely by chance and large
enough to matter means that the run was going somewhere, as a queue does that grows from second to second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serveproof.load_records import Steadiness, Trend
from serveproof.load_test.metrics import Served, outstanding

Floats = npt.NDArray[np.float64]
BATCH, BATCHES = 5, 10
FEWEST = 40
SIGNIFICANCE = 0.01
SMALLEST_CHANGE = 0.25


def warm_up(values: Floats) -> int:
    """How many values at the beginning are warm-up. MSER-5 over the first half, on ranks: latencies are skewed, and one
    burst must not look like the beginning's end.

    What is cut must differ from the rest (Mann and Whitney's test over the means): else a run could lose a bad stretch
    at its beginning by chance, and look better than it was.
    """
    from scipy.stats import mannwhitneyu, rankdata  # slow to import

    count = len(values) // BATCH
    if count < 4:
        return 0
    means = rankdata(values)[: count * BATCH].reshape(count, BATCH).mean(axis=1)
    errors = [float(means[cut:].var() / (count - cut)) for cut in range(count // 2 + 1)]
    best = int(np.argmin(errors))
    if not best or mannwhitneyu(means[:best], means[best:]).pvalue > SIGNIFICANCE:
        return 0
    return best * BATCH


def trend(name: str, values: Floats) -> Trend:
    """Kendall's tau over the means of ten batches, and how much the figure changes from end to end by Theil and Sen's
    line, as a share of its mean."""
    from scipy.stats import kendalltau, theilslopes  # slow to import

    usable = values[: len(values) // BATCHES * BATCHES]
    means = usable.reshape(BATCHES, -1).mean(axis=1)
    level = float(means.mean())
    if level == 0 or float(means.std()) == 0:
        return Trend(name, 0.0, 1.0, 0.0, True)
    tau, p = (float(one) for one in kendalltau(np.arange(BATCHES), means))
    slope = float(theilslopes(means)[0])
    change = slope * (BATCHES - 1) / level
    return Trend(name, tau, p, change, not (p < SIGNIFICANCE and abs(change) > SMALLEST_CHANGE))


def judge(requests: Sequence[Served], duration_s: float) -> Steadiness:
    """Warm-up and steadiness of a run of duration_s, by TTFT, by end-to-end latency and by how many were under way.

    requests: in the order of their arrival, all of the run. Requests that failed have no latency; what is under way
    counts them too.
    """
    whole = [one for one in requests if one.ttft_ms is not None and one.e2e_ms is not None]
    if len(whole) < FEWEST:
        reason = f"{len(whole)} answered requests; at least {FEWEST} are needed to tell: a longer run, or a higher rate"
        return Steadiness("too_short", reason, 0.0, 0, [])
    ttft = np.asarray([one.ttft_ms for one in whole])
    e2e = np.asarray([one.e2e_ms for one in whole])
    cut = max(warm_up(ttft), warm_up(e2e))
    warmup_s = whole[cut].intended_s if cut else 0.0
    seconds = np.linspace(warmup_s, duration_s, 20 * BATCHES, endpoint=False)
    under_way = outstanding(requests, seconds).astype(np.float64)
    trends = [trend("ttft_ms", ttft[cut:]), trend("e2e_ms", e2e[cut:]), trend("requests_under_way", under_way)]
    moving = [one for one in trends if not one.steady]
    if moving:
        told = ", ".join(f"{one.name} {100 * one.change:+.0f} % from end to end" for one in moving)
        return Steadiness("not_steady", f"still changing after the warm-up: {told}", warmup_s, cut, trends)
    return Steadiness("steady", "", warmup_s, cut, trends)
