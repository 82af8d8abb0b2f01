"""Several processes that do one job together, one a GPU: joined by torch.distributed for as long as the job lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from serveproof.bench.job import Job

TIMEOUT = timedelta(seconds=120)


@contextmanager
def joined(job: Job) -> Iterator[None]:
    """Join this process to the job's others: RANK and SERVEPROOF_STORE (a file all see) come from the environment.

    Nothing happens for a job of one rank.
    """
    if job.ranks == 1:
        yield
        return
    with meeting(int(os.environ["RANK"]), job.ranks, job.device, os.environ["SERVEPROOF_STORE"]):
        yield


@contextmanager
def meeting(rank: int, world: int, device: str, store: str) -> Iterator[None]:
    """torch.distributed's default group, met through a file that all see. Each rank takes the GPU of its number among
    the visible ones."""
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
        device_id=torch.device("cuda", rank) if device == "cuda" else None,
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
