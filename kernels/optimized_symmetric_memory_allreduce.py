"""All-reduce over memory that every GPU has mapped: each rank reads its peers' buffers itself, with no ring between.

torch's symmetric memory (pytorch.org, torch.distributed._symmetric_memory) with its one-shot and two-shot kernels, and
a one-shot kernel of our own with one barrier a call (serveproof/ops/one_shot_all_reduce.py). NCCL itself is a candidate
too, so that no size is served slower than by it. Multicast and multimem operations are not used.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

READS = ("x",)
CALLS = 20
# Beyond this a rank of more than two would read several times what two-shot reads.
ONE_SHOT_MOST_BYTES = 2**24


def requires(device):
    """None with two or more visible GPUs; else what is missing."""
    if device != "cuda":
        return "symmetric memory is mapped between GPUs: it doesn't exist on a CPU"
    if torch.cuda.device_count() < 2:
        return f"an all-reduce needs two GPUs or more; {torch.cuda.device_count()} is visible"
    return None


def build(inputs):
    """The candidates."""
    return {
        "triton one-shot": lambda: captured(one_shot_triton(inputs)),
        "symm_mem one-shot": lambda: captured(one_shot_torch(inputs)),
        "symm_mem two-shot": lambda: captured(two_shot_torch(inputs)),
        "nccl": lambda: captured(nccl(inputs)),
    }


def captured(chain):
    """A CUDA graph of `chain`, which returns its output; every rank captures alike."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        chain()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = chain()

    def run():
        graph.replay()
        return output

    run.keeps = chain  # the graph reads buffers that only the chain holds
    run.calls = CALLS
    run.plan = f"{CALLS} calls in one CUDA graph, captured outside the timed region"
    return run


def symmetric_like(x):
    """(a tensor like x that every rank has mapped, the group's name)."""
    import torch.distributed._symmetric_memory as symm_mem

    group = dist.group.WORLD.group_name
    mapped = symm_mem.empty(x.numel(), dtype=x.dtype, device=x.device)
    symm_mem.rendezvous(mapped, group)
    return mapped, group


def refuse_large(x):
    """One-shot reads every peer's whole tensor."""
    if x.nbytes > ONE_SHOT_MOST_BYTES:
        raise NotImplementedError(f"one-shot is for latency: tried up to {ONE_SHOT_MOST_BYTES // 2**20} MiB")


def one_shot_triton(inputs):
    """Our kernel; CALLS is even, so its two buffers are in turn over replays too."""
    from serveproof.ops.one_shot_all_reduce import OneShot

    refuse_large(inputs["x"])
    all_reduce = OneShot(inputs["x"].numel(), inputs["x"].dtype, inputs["x"].device)

    def chain():
        total = inputs["x"]
        for _ in range(CALLS):
            total = all_reduce(total)
        return total

    return chain


def one_shot_torch(inputs):
    """torch's one-shot with its copy into symmetric memory inside."""
    refuse_large(inputs["x"])
    mapped, group = symmetric_like(inputs["x"])

    def chain():
        total = inputs["x"]
        for _ in range(CALLS):
            total = torch.ops.symm_mem.one_shot_all_reduce_copy(mapped, total, "sum", group)
        return total

    return chain


def two_shot_torch(inputs):
    """torch's two-shot, in place in symmetric memory."""
    mapped, group = symmetric_like(inputs["x"])

    def chain():
        mapped.copy_(inputs["x"])
        for _ in range(CALLS):
            torch.ops.symm_mem.two_shot_all_reduce_(mapped, "sum", group)
        return mapped

    return chain


def nccl(inputs):
    """NCCL's all-reduce, in place on a copy of x."""
    work_buffer = torch.empty_like(inputs["x"])

    def chain():
        work_buffer.copy_(inputs["x"])
        for _ in range(CALLS):
            dist.all_reduce(work_buffer)
        return work_buffer

    return chain
