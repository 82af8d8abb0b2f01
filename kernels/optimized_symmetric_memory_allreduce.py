"""All-reduce over memory that every GPU has mapped: each rank reads or writes its peers' buffers itself, with no ring.

torch's symmetric memory (torch.distributed._symmetric_memory) with its one-shot and two-shot kernels, and three kernels
of our own over the same memory (serveproof/ops/peer_all_reduce.py): push with the call's number in every word, which
needs no barrier; pull with one; two-shot. NCCL itself is a candidate too, so that no size is served slower than by it.
Multicast and multimem operations are not used.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist

READS = ("x", "calls", "captured")


def requires(device):
    """None with two or more visible GPUs; else what is missing."""
    if device != "cuda":
        return "symmetric memory is mapped between GPUs: it doesn't exist on a CPU"
    if torch.cuda.device_count() < 2:
        return f"needs two GPUs, {torch.cuda.device_count()} is visible"
    return None


def build(inputs):
    """The candidates. A chain is what the graph captures: x copied into the work buffer, then `calls` in place."""
    chains = {
        "triton push": triton_push,
        "triton pull": triton_pull,
        "triton two-shot": triton_two_shot,
        "symm_mem one-shot": torch_one_shot,
        "symm_mem two-shot": torch_two_shot,
        "nccl": nccl,
    }
    return {name: partial(made, inputs, chain_of) for name, chain_of in chains.items()}


def made(inputs, chain_of):
    """The replay of one candidate's graph."""
    return inputs["captured"](chain_of(inputs["x"], inputs["calls"]))


def repeated(x, buffer, call, calls):
    """A chain: copy x, then the same call `calls` times in place."""

    def chain():
        buffer.copy_(x)
        for _ in range(calls):
            call()
        return buffer

    return chain


def triton_push(x, calls):
    from serveproof.ops import peer_all_reduce, peer_memory

    buffer = torch.empty_like(x)
    call = peer_all_reduce.push(dist.get_rank(), dist.get_world_size(), buffer, peer_memory.allocate)
    return repeated(x, buffer, call, calls)


def triton_pull(x, calls):
    from serveproof.ops import peer_all_reduce, peer_memory

    buffer = torch.empty_like(x)
    call = peer_all_reduce.pull(dist.get_rank(), dist.get_world_size(), buffer, peer_memory.allocate)
    return repeated(x, buffer, call, calls)


def triton_two_shot(x, calls):
    from serveproof.ops import peer_all_reduce, peer_memory

    if x.dtype != torch.bfloat16:
        raise NotImplementedError(f"{x.dtype}: this kernel takes bfloat16")
    buffer, call = peer_all_reduce.two_shot(
        dist.get_rank(), dist.get_world_size(), x.numel(), x.device, peer_memory.allocate
    )
    return repeated(x, buffer, call, calls)


def mapped_for_torch(x):
    """(a mapped tensor like x, the group's name) for torch's operations, which count from an allocation's start."""
    from serveproof.ops import peer_memory

    own, addresses, handle = peer_memory.allocate(x.numel(), x.dtype, x.device)
    if not peer_memory.starts_a_block(own, addresses, handle):
        raise NotImplementedError("the mapped tensor doesn't start its allocation: torch's operations would miss it")
    return own, dist.group.WORLD.group_name


def torch_one_shot(x, calls):
    """torch's one-shot, its copy into the mapped buffer inside; two work buffers, for it may not write its input."""
    mapped, group = mapped_for_torch(x)
    buffers = torch.empty_like(x), torch.empty_like(x)

    def chain():
        buffers[0].copy_(x)
        for number in range(calls):
            source, target = buffers[number % 2], buffers[1 - number % 2]
            torch.ops.symm_mem.one_shot_all_reduce_copy_out(mapped, source, "sum", group, target)
        return buffers[calls % 2]

    return chain


def torch_two_shot(x, calls):
    """torch's two-shot, in place in mapped memory."""
    mapped, group = mapped_for_torch(x)
    return repeated(x, mapped, partial(torch.ops.symm_mem.two_shot_all_reduce_, mapped, "sum", group), calls)


def nccl(x, calls):
    """NCCL's all-reduce, in place."""
    buffer = torch.empty_like(x)
    return repeated(x, buffer, partial(dist.all_reduce, buffer), calls)


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
