"""The least time that a case can take on this machine, from its useful work and the machine's measured ceilings."""

from __future__ import annotations

from typing import Any, Literal

from serveproof.errors import UserError
from serveproof.results import Ceilings, Estimate

# Beyond this share of the roofline it's an error. On a GPU ceilings repeat within 3 %. A shared CPU's may be taken
# while a neighbour has half of it: there the margin only tells what can't be, such as an output from a cache.
MARGINS = {"cpu": 1.5, "cuda": 1.05}


def roofline_ms(work: dict[str, Any], ceilings: Ceilings) -> tuple[float, Literal["bytes", "flops"]]:
    """(ms, which ceiling binds): max(FLOPs / measured matrix rate of the dtype, bytes / measured read bandwidth).

    Source: Williams, Waterman, Patterson, 'Roofline', CACM 52(4), 2009.
    """
    rate = ceilings.matmul_flops_per_s.get(work["dtype"])
    if rate is None:
        raise UserError(
            f"no measured matrix rate for {work['dtype']} on this machine "
            f"(there are: {', '.join(ceilings.matmul_flops_per_s)}); use another dtype in config/workloads.yaml"
        )
    flops_ms = 1e3 * work["flops"] / rate
    bytes_ms = 1e3 * work["bytes"] / ceilings.read_bandwidth_bytes_per_s
    return (bytes_ms, "bytes") if bytes_ms >= flops_ms else (flops_ms, "flops")


def too_fast(fraction: Estimate, device: str) -> bool:
    """True when even the interval's low end beats the roofline by more than the ceilings' own spread."""
    return fraction.low > MARGINS[device]
