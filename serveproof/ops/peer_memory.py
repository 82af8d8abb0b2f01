"""Tensors that every rank's GPU has mapped, and where they lie: torch's symmetric memory, CUDA back end.

Sources: torch.distributed._symmetric_memory and torch/csrc/distributed/c10d/symm_mem in torch 2.11 to 2.13.
"""

from __future__ import annotations

from typing import Any

import torch


def allocate(elements: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, list[int], Any]:
    """(own tensor of zeros (elements,), every rank's address of its namesake in rank order, what must be kept).

    A collective: every rank calls it alike, with a barrier at its end. Not by symm_mem.empty: that may carve a tensor
    out of a pool's block, and get_buffer(), buffer_ptrs and torch's own one- and two-shot operations count from the
    block's start. So the offset in the block is added here, and must be none for torch's operations.
    """
    import torch.distributed._symmetric_memory as symm_mem
    from torch._C._distributed_c10d import _SymmetricMemory

    if symm_mem.get_backend(device) != "CUDA":
        symm_mem.set_backend("CUDA")
    group = torch.distributed.group.WORLD.group_name  # type: ignore[union-attr]
    own = _SymmetricMemory.empty_strided_p2p((elements,), (1,), dtype, device)
    own.zero_()
    handle = symm_mem.rendezvous(own, group)
    offset = own.data_ptr() - handle.buffer_ptrs[handle.rank]
    torch.cuda.synchronize()
    torch.distributed.barrier()
    return own, [address + offset for address in handle.buffer_ptrs], handle


def starts_a_block(own: torch.Tensor, addresses: list[int], handle: Any) -> bool:
    """Whether torch's operations, which count from the block's start, find this tensor."""
    return bool(addresses[handle.rank] == handle.buffer_ptrs[handle.rank]) and own.storage_offset() == 0
