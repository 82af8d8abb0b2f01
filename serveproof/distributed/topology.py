"""What joins the GPUs: NVML's links with their speed, and the bandwidth measured from each rank to each other."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from serveproof.distributed.collectives import timed
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import PeerMatrix, RankedCase, RankedFigure
from serveproof.hardware.key import nvml, visible_gpus
from serveproof.results import Estimate

MOST_LINKS = 18
COPIES = 8


# MB/s of one link one way by NVLink's version, as nvidia-smi nvlink --status says them; for drivers that tell no speed
LINK_MB_PER_S = {3: 25_781.0, 4: 26_562.0}


def _speed_mb_per_s(library: Any, handle: Any, link: int) -> float:
    """Of one link one way; 0 where neither the driver nor the link's version tells."""
    for asked in (library.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, (library.NVML_FI_DEV_NVLINK_GET_SPEED, link)):
        try:
            value = library.nvmlDeviceGetFieldValues(handle, [asked])[0]
        except (library.NVMLError, AttributeError, TypeError):
            continue
        if value.nvmlReturn == 0 and value.value.uiVal:
            return float(value.value.uiVal)
    try:
        return LINK_MB_PER_S.get(library.nvmlDeviceGetNvLinkVersion(handle, link), 0.0)
    except library.NVMLError:
        return 0.0


def links_of(library: Any, handle: Any) -> tuple[int, float | None]:
    """(active NVLinks, bytes/s one way of all together): state and speed by NVML; None where nothing tells it."""
    active, rate = 0, 0.0
    for link in range(getattr(library, "NVML_NVLINK_MAX_LINKS", MOST_LINKS)):
        try:
            on = library.nvmlDeviceGetNvLinkState(handle, link) == 1
        except library.NVMLError:
            continue
        active += on
        rate += 1e6 * _speed_mb_per_s(library, handle, link) if on else 0.0
    return active, rate or None


def links() -> tuple[list[str], float | None]:
    """(a line a visible GPU, the links' rate of the least of them)."""
    library = nvml()
    lines, rates = [], []
    for place, gpu in enumerate(visible_gpus() if library else []):
        active, rate = links_of(library, library.nvmlDeviceGetHandleByUUID(gpu.uuid))  # type: ignore[union-attr]
        told = f"{rate / 1e9:.1f} GB/s one way" if rate else "speed not told"
        lines.append(f"GPU {place} ({gpu.name}): {active} NVLinks active, {told}")
        rates.append(rate)
    known = [rate for rate in rates if rate is not None]
    return lines, min(known) if known and len(known) == len(rates) else None


def _cuda_row(ranks: Ranks, bytes_: int) -> list[float | None]:
    """This rank's copies to each GPU of its node, by itself: the others wait at a barrier of the CPU."""
    row: list[float | None] = [None] * ranks.world
    first = ranks.rank - ranks.local
    own = torch.empty(bytes_, dtype=torch.uint8, device=ranks.device)
    for local in range(ranks.local_world):
        if local == ranks.local:
            continue
        theirs = torch.empty(bytes_, dtype=torch.uint8, device=torch.device("cuda", local))
        theirs.copy_(own)
        times = []
        for _ in range(COPIES):
            torch.cuda.synchronize(local)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            theirs.copy_(own, non_blocking=True)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        row[first + local] = 1e3 * bytes_ / sorted(times)[len(times) // 2]
    return row


def _message_row(ranks: Ranks, source: int, bytes_: int, row: list[float | None]) -> None:
    """What rank `source` sends to each other, one after another; an answer of one byte ends a sample."""
    x, answer = torch.zeros(bytes_, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    for target in range(ranks.world):
        if target == source:
            continue

        def call(target: int = target) -> None:
            if ranks.rank == source:
                dist.send(x, target)
                dist.recv(answer, target)
            elif ranks.rank == target:
                dist.recv(x, source)
                dist.send(answer, source)

        taken = timed(ranks, call, samples=5, calls=2)
        if ranks.rank == source:
            row[target] = 1e3 * bytes_ / taken.value


def peer_bandwidth(ranks: Ranks, bytes_: int) -> tuple[PeerMatrix, RankedCase]:
    """The matrix, and the case that judges its worst entry against the links' rate."""
    axes = {"bytes": bytes_, "ranks": ranks.world}
    lines, limit = links() if ranks.device.type == "cuda" else ([], None)
    row: list[float | None] = [None] * ranks.world
    for source in range(ranks.world):
        if ranks.device.type == "cpu":
            _message_row(ranks, source, bytes_, row)
        elif source == ranks.rank:
            row = _cuda_row(ranks, bytes_)
        dist.barrier()
    rows = ranks.gathered(row)
    how = (
        f"median of {COPIES} copies of {bytes_ / 2**20:.0f} MiB by the copy engine, one pair at a time, CUDA events"
        if ranks.device.type == "cuda"
        else f"messages of {bytes_ / 2**20:.2g} MiB over gloo, one pair at a time: the host's memory and TCP, no link"
    )
    matrix = PeerMatrix(rows, limit, lines, how)
    found = [one for line in rows for one in line if one is not None]
    if not found:
        return matrix, RankedCase("peer_bandwidth", axes, "skipped", "one GPU a node: no peer to copy to")
    figures = {}
    low, high = min(found), max(found)
    if limit:
        shares = [one / limit for one in found]
        figures["of_link"] = RankedFigure(Estimate(median(shares), low / limit, high / limit, "fraction"), True)
    reason = f"{low / 1e9:.2f} to {high / 1e9:.2f} GB/s" + (f" of {limit / 1e9:.0f}" if limit else "; no link's limit")
    return matrix, RankedCase("peer_bandwidth", axes, "passed", reason, figures)
