"""All-reduce of a tensor over every GPU by NCCL, under a CUDA graph: what tensor parallelism does twice a layer.

Twenty all-reduces follow one another, as in a model, each on what the last one left; a call is a twentieth of the run.
So what is timed is the all-reduce, not how far apart the ranks started.

axes: elements, dtype.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

READS = ("x", "calls", "captured")
RANKS = "all"
CALLS = 20
RANK_SEEDS = 7919  # ranks hold different values


def make_inputs(axes, device, seed):
    """x (elements,) standard normal, another on each rank; and how many calls a run makes, and how it is captured."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    generator = torch.Generator(device=device).manual_seed(seed + RANK_SEEDS * rank)
    dtype = getattr(torch, axes["dtype"])
    x = torch.randn(axes["elements"], generator=generator, device=device, dtype=dtype)
    return {"x": x, "calls": CALLS, "captured": captured}


def reference(inputs):
    """The sum over ranks, times the number of ranks for every further call: the later ones add equal tensors."""
    x = inputs["x"].float().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.stack(parts).sum(0) * float(dist.get_world_size()) ** (CALLS - 1)


def work(axes):
    """Of one call: a rank adds and reads its own tensor once, at least. The links' rate is not among the ceilings.

    The items are bus bytes, 2 (n - 1) / n of the tensor for n ranks (2 without a process group): what must go out
    and come in over a rank's links however the reduction is done. So the throughput is nccl-tests' bus bandwidth.
    """
    moved = axes["elements"] * getattr(torch, axes["dtype"]).itemsize
    n = dist.get_world_size() if dist.is_initialized() else 2
    return {
        "flops": axes["elements"], "bytes": moved, "dtype": axes["dtype"],
        "items": 2 * (n - 1) / n * moved, "item": "bus bytes",
    }  # fmt: skip


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


def build(inputs):
    """NCCL's all-reduce, in place on a copy of x."""
    work_buffer = torch.empty_like(inputs["x"])

    def chain():
        work_buffer.copy_(inputs["x"])
        for _ in range(CALLS):
            dist.all_reduce(work_buffer)
        return work_buffer

    run = captured(chain)
    run.backend = "nccl"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
