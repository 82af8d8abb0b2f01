"""The engine's all-reduce through one inbox, whatever sizes follow one another: by Triton's interpreter, two ranks.

Two threads stand for the ranks: the interpreter's programs poll until the other has written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("triton", reason="triton is not installed: the kernel's maths can't be interpreted")

WORLD = 2
SIZES = (70, 2, 134, 30, 134, 64, 2)


def ranked(rank: int, shared: list[torch.Tensor], out: str) -> None:
    torch.set_num_threads(1)
    from serveproof.ops import peer_push

    def allocate(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, list[int], Any]:
        views = [one[: count * dtype.itemsize].view(dtype) for one in shared]
        return views[rank], [view.data_ptr() for view in views], views

    push = peer_push.push_any(rank, WORLD, 134, torch.device("cpu"), allocate, block=16, warps=1)
    sums = []
    for number, size in enumerate(SIZES):
        x = value(rank, number, size)
        push(x)
        sums.append(x)
    torch.save(sums, f"{out}/{rank}.pt")


def value(rank: int, number: int, size: int) -> torch.Tensor:
    return ((torch.arange(size) * (rank + 2) + number) % 31).bfloat16()


def test_sums_of_every_size_in_turn(tmp_path: Path) -> None:
    shared = [torch.zeros(2**14, dtype=torch.uint8).share_memory_() for _ in range(WORLD)]
    context = mp.get_context("spawn")
    processes = [context.Process(target=ranked, args=(rank, shared, str(tmp_path)), daemon=True) for rank in range(2)]
    # Set while they start: in this process, on a machine with a GPU, other tests' kernels are compiled.
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        for number, (size, one) in enumerate(zip(SIZES, found, strict=True)):
            assert torch.equal(one, value(0, number, size) + value(1, number, size)), (rank, number)


def test_what_it_does_not_take_goes_elsewhere() -> None:
    from serveproof.ops import peer_push

    with pytest.raises(NotImplementedError, match="taken up to"):
        peer_push.push_any(0, 2, 2**24, torch.device("cpu"), lambda *_: None, block=16)  # type: ignore[arg-type, return-value]
