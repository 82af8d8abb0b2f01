"""Who reads which part of the KV cache in one decode step of serveproof.ops.paged_decode: a plan, made once a step.

The keys of a sequence are cut into parts, a program takes one part of one KV head. Lengths change from step to step, so
a plan can be filled anew on the device, in place, for a CUDA graph that was captured with it. torch only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# of an item: sequence, first token, end, slot for its partial result, the sequence's first slot, its count of slots
FIELDS = 6
MULTIPROCESSORS = 132  # an H200's; where there is no GPU to ask
SHARED_BYTES = 227 * 1024  # that a multiprocessor of compute capability 9.0 gives its programs
# What starting a program costs, and merging one more part of a sequence, in tokens that it could have read meanwhile:
# the parts chosen by them take 1 % longer than the best that were tried on an H200 (docs/pairs/fp8_kv_cache.md).
START_TOKENS = 600
MERGE_TOKENS = 12
# Programs a multiprocessor that parts are dealt out for: more of them, of one warp each, wait for its issue slots.
MOST_RESIDENT = 8


@dataclass(frozen=True)
class Tuning:
    """Most tokens a program, tokens a tile, warps, stages of tiles.

    flip: tokens are the rows of the products instead of query heads. Then they fill Hopper's wgmma, which takes keys
    and values from shared memory as they lie there; 4 or 8 warps, tiles of 64 or more, 16-bit caches.
    """

    chunk: int
    tile: int
    warps: int
    stages: int
    flip: bool = False

    def resident(self, head_dim: int, itemsize: int) -> int:
        """How many programs a multiprocessor is to hold at once.

        By shared memory, by registers (16 warps of 128), and no more than its issue slots serve.
        """
        buffers = self.stages - 1 + self.flip
        shared = 2 * max(1, buffers) * self.tile * head_dim * itemsize + 9 * 1024
        return max(1, min(SHARED_BYTES // shared, 16 // self.warps, MOST_RESIDENT))


# (head dimension, bytes an element) -> tuning: the best of sweeps on an H200 (docs/pairs/fp8_kv_cache.md). A program
# of one warp waits for no other between its products; 128 numbers of 2 bytes are more than its registers hold.
TUNINGS = {
    (64, 2): Tuning(8192, 64, 1, 2),
    (128, 2): Tuning(8192, 64, 4, 2),
    (64, 1): Tuning(8192, 32, 1, 3),
    (128, 1): Tuning(8192, 32, 1, 3),
}
DEFAULT = Tuning(1024, 32, 4, 2)


def tuning_of(head_dim: int, itemsize: int) -> Tuning:
    """The tuning for a head dimension and element size."""
    return TUNINGS.get((head_dim, itemsize), DEFAULT)


@dataclass
class Plan:
    """Who does what in one decode step, made once for all its layers: tensors that a graph may keep reading.

    items: (FIELDS, most items) int32; the sequence is -1 where there is no such item. counters: (B * QH), zero between
    calls. at_once: programs that the GPU runs at a time. The rest are buffers for partial results. Calls that share a
    plan must not overlap.
    """

    tuning: Tuning
    kv_heads: int
    at_once: int
    items: torch.Tensor
    counters: torch.Tensor
    partial: torch.Tensor
    peaks: torch.Tensor
    sums: torch.Tensor


def make_plan(q_BHD: torch.Tensor, k_NPHD: torch.Tensor, items: int, tuning: Tuning | None = None) -> Plan:
    """An empty plan for at most `items` parts, at least one a sequence."""
    B, q_heads, D = q_BHD.shape
    device = q_BHD.device
    if items < B:
        raise ValueError(f"{items} items for {B} sequences: each takes at least one")
    tuning = tuning or tuning_of(D, k_NPHD.element_size())
    multiprocessors = MULTIPROCESSORS
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    return Plan(
        tuning, k_NPHD.shape[2], multiprocessors * tuning.resident(D, k_NPHD.element_size()),
        torch.full((FIELDS, items), -1, dtype=torch.int32, device=device),
        torch.zeros(B * q_heads, dtype=torch.int32, device=device),
        floats(items, q_heads, D), floats(items, q_heads), floats(items, q_heads),
    )  # fmt: skip


def parts_of(lengths_B: torch.Tensor, chunk: torch.Tensor | int) -> torch.Tensor:
    """How many parts of at most `chunk` tokens each length takes; an empty sequence takes one, which writes zeros."""
    return ((lengths_B + chunk - 1) // chunk).clamp(min=1)


def chunk_of(lengths_B: torch.Tensor, tuning: Tuning, kv_heads: int, at_once: int, most: int | None) -> torch.Tensor:
    """The part length, () int64, with which all programs are done soonest, on the device and without waiting for it.

    Parts of one length finish in waves of at_once programs, and a last wave of few leaves most of the GPU idle: with
    1024 programs on 396 places the third wave is half empty. What is left of a sequence after its whole parts fills
    such gaps, the more evenly the smaller it is. So for each multiple of the tile: the whole parts' waves, or the mean
    load plus a mean rest, whichever is longer, plus what starting the programs costs, plus the longest merge. Where no
    length up to tuning.chunk takes at most `most` parts: total / (most - B) tokens never take more.
    """
    lengths_B = lengths_B.long()
    chunk_C = torch.arange(tuning.tile, tuning.chunk + 1, tuning.tile, device=lengths_B.device)
    parts_CB = parts_of(lengths_B, chunk_C[:, None])
    parts_C = parts_CB.sum(1)
    whole_C = (lengths_B // chunk_C[:, None]).sum(1) * kv_heads
    rest_CB = lengths_B % chunk_C[:, None]
    rest_C = rest_CB.sum(1) / (rest_CB > 0).sum(1).clamp(min=1)
    waves_C = (whole_C + at_once - 1) // at_once * chunk_C
    mean = lengths_B.sum() * kv_heads / at_once
    cost_C = torch.maximum(waves_C.double(), mean + rest_C) + parts_C * kv_heads / at_once * START_TOKENS
    cost_C = cost_C + (parts_CB.amax(1) - 1) * MERGE_TOKENS
    if most is None:
        return (cost_C.argmin() + 1) * tuning.tile
    fits_C = parts_C <= most
    share = (lengths_B.sum() + max(1, most - len(lengths_B)) - 1) // max(1, most - len(lengths_B))
    longer = (share + tuning.tile - 1) // tuning.tile * tuning.tile
    # computed, not looked up: indexing by a tensor of one number would wait for it
    best = (torch.where(fits_C, cost_C, torch.inf).argmin() + 1) * tuning.tile
    return torch.where(fits_C.any(), best, longer)


def fill_plan(plan: Plan, lengths_B: torch.Tensor, chunk: torch.Tensor | int | None = None) -> None:
    """Deal the parts out, on the device and without waiting for it: a step's lengths change, its buffers don't.

    Longest parts come first, so that short ones fill up the end. chunk: a part length that was chosen already, a
    multiple of the tile with which the parts fit.
    """
    most, lengths_B = plan.items.shape[1], lengths_B.long()
    batch = len(lengths_B)
    if chunk is None:
        chunk = chunk_of(lengths_B, plan.tuning, plan.kv_heads, plan.at_once, most)
    count_B = parts_of(lengths_B, chunk)
    end_B = count_B.cumsum(0)
    slot = torch.arange(most, device=lengths_B.device)
    seq = torch.searchsorted(end_B, slot, right=True)
    there = seq < batch
    seq = seq.clamp(max=batch - 1)
    first = (end_B - count_B)[seq]
    start = (slot - first) * chunk
    end = torch.minimum(start + chunk, lengths_B[seq])
    fields = torch.stack((torch.where(there, seq, -1), start, end, slot, first, count_B[seq]))
    order = torch.where(there, end - start, -1).argsort(descending=True)
    plan.items.copy_(fields[:, order])


def plan_for(
    q_BHD: torch.Tensor, k_NPHD: torch.Tensor, lengths_B: torch.Tensor, tuning: Tuning | None = None, chunk: int = 0
) -> Plan:
    """A filled plan with exactly the parts that these lengths take, `chunk` long or as long as is best.

    Waits for the lengths: not for a graph, whose plan is made once for a number of items that serves all its steps.
    """
    probe = make_plan(q_BHD[:1], k_NPHD, 1, tuning)
    lengths = lengths_B.cpu()
    chunk = chunk or int(chunk_of(lengths, probe.tuning, probe.kv_heads, probe.at_once, None))
    plan = make_plan(q_BHD, k_NPHD, int(parts_of(lengths, chunk).sum()), tuning)
    fill_plan(plan, lengths_B, chunk)
    return plan
