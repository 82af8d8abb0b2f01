"""Is an output right? Relative error, per-element error, and the four corruptions that the check must reject.

Bounds come from the dtype: `tolerance_eps` (workloads.yaml) times the output dtype's machine epsilon bounds
||out - ref|| / ||ref||; ELEMENT_FACTOR times that bounds each |out - ref| / (|ref| + rms of its row of ref), which
catches one wrong row in a large output that the norm would average away, whatever the row's own scale.
"""

from __future__ import annotations

import re
import traceback

import msgspec
import torch

from serveproof.bench.host_sync import HostSync, no_host_sync
from serveproof.bench.inputs import Refill
from serveproof.pairs import Pair, Run
from serveproof.results import SideCheck, Status

# Rounding errors are about uniform: the largest of 1e8 stays near 6 of their standard deviations; doubled.
ELEMENT_FACTOR = 12.0
CORRUPTIONS = ("zeros", "negated", "stale", "shuffled")


def errors(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(relative, per-element) error of `output` against `reference`, same shape; a row is the last dimension.

    Computed in float64 by blocks of rows. A NaN or infinity anywhere gives (inf, inf).
    """
    if output.shape != reference.shape:
        raise ValueError(f"output has shape {tuple(output.shape)}, the reference {tuple(reference.shape)}")
    out_RD, ref_RD = output.reshape(-1, output.shape[-1]), reference.reshape(-1, output.shape[-1])
    norm = float(torch.linalg.vector_norm(ref_RD, dtype=torch.float64))
    floor = 1e-3 * norm / max(ref_RD.numel(), 1) ** 0.5 + 1e-300  # a row of zeros has no scale of its own
    difference_squared, element = 0.0, 0.0
    rows = max(1, 2**24 // ref_RD.shape[1])  # a float64 copy of a large output would not fit beside it
    for out, ref in zip(out_RD.split(rows), ref_RD.split(rows), strict=True):
        o, r = out.double(), ref.double()
        difference = (o - r).abs()
        if not bool(torch.isfinite(difference).all()):
            return float("inf"), float("inf")
        difference_squared += float((difference**2).sum())
        scale = r.abs() + r.square().mean(dim=-1, keepdim=True).sqrt() + floor
        element = max(element, float((difference / scale).max()))
    return difference_squared**0.5 / (norm + 1e-300), element


def corrupt(kind: str, output: torch.Tensor, stale: torch.Tensor) -> torch.Tensor:
    """The output replaced by zeros, by its negation, by the output of other inputs, or by a shuffle of itself."""
    if kind == "zeros":
        return torch.zeros_like(output)
    if kind == "negated":
        return -output
    if kind == "stale":
        return stale
    generator = torch.Generator().manual_seed(0)
    flat = output.reshape(-1)
    return flat[torch.randperm(flat.numel(), generator=generator).to(flat.device)].reshape(output.shape)


def check(output: torch.Tensor, reference: torch.Tensor, tolerance_eps: float) -> SideCheck:
    """Hold one output against the reference; `passed` or `failed` with the figure that broke its bound."""
    relative_bound = tolerance_eps * torch.finfo(output.dtype).eps
    element_bound = ELEMENT_FACTOR * relative_bound
    relative, element = errors(output, reference)
    reason = ""
    if not relative <= relative_bound:
        reason = f"relative error {relative:.3g} exceeds {relative_bound:.3g}"
    elif not element <= element_bound:
        reason = f"an element's error {element:.3g} exceeds {element_bound:.3g}"
    return SideCheck(
        status="failed" if reason else "passed",
        reason=reason,
        relative_error=relative if relative != float("inf") else None,
        relative_bound=relative_bound,
        element_error=element if element != float("inf") else None,
        element_bound=element_bound,
    )


def verify(
    runs: dict[str, Run], tolerances: dict[str, float], sync_free: set[str], refill: Refill, pair: Pair
) -> dict[str, SideCheck]:
    """Check each closure by name: run on values, refill in place with others, run again, hold the second output
    against the reference; then the four corruptions. Those in `sync_free` must not wait for the GPU.

    An exception of one closure is its status and stops no other.
    """
    found: dict[str, SideCheck] = {}
    stale: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for kept, guarded in ((stale, False), (outputs, True)):
        refill.fresh()
        for name, run in runs.items():
            if name in found:
                continue
            try:
                with no_host_sync(guarded and name in sync_free):
                    kept[name] = run().clone()
            except Exception as error:
                found[name] = SideCheck(*outcome_of(error))
    reference = pair.baseline.reference(refill.live)
    for name, output in outputs.items():
        try:
            found[name] = _check_and_corrupt(output, stale[name], reference, tolerances[name])
        except Exception as error:  # an output of another shape
            found[name] = SideCheck(*outcome_of(error))
    return {name: found[name] for name in runs}


def _check_and_corrupt(
    output: torch.Tensor, stale: torch.Tensor, reference: torch.Tensor, tolerance_eps: float
) -> SideCheck:
    result = check(output, reference, tolerance_eps)
    rejected = {
        kind: check(corrupt(kind, output, stale), reference, tolerance_eps).status == "failed" for kind in CORRUPTIONS
    }
    status, reason = result.status, result.reason
    if status == "passed" and not all(rejected.values()):
        accepted = ", ".join(kind for kind, ok in rejected.items() if not ok)
        status, reason = "failed", f"the check accepts a wrong output ({accepted}): it can't fail, so it proves nothing"
    return msgspec.structs.replace(result, status=status, reason=reason, must_fail=rejected)


def outcome_of(error: Exception) -> tuple[Status, str]:
    """An exception's status and reason. Call it where it was caught.

    A refusal is `skipped`, memory that isn't there `out_of_memory` with the bytes asked for, a wait for the GPU where
    none may be `failed`, anything else `error` with the traceback.
    """
    if isinstance(error, NotImplementedError):
        return "skipped", str(error) or "the back end refuses without a reason"
    if isinstance(error, HostSync):
        return "failed", str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        asked = re.search(r"allocate ([\d.]+ ?(?:[KMGT]iB|bytes))", str(error))
        first = (str(error).splitlines() or [""])[0]
        return "out_of_memory", f"asked for {asked[1]}" if asked else first or "the host gave no more memory"
    return "error", traceback.format_exc()
