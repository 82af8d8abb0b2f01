"""All-reduce: the problem and its reference with gloo, and our kernels by Triton's interpreter, two processes each.

What differs from a GPU: the peers' memory is memory that the processes share, and programs run one after another.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp

from serveproof import pairs
from serveproof.bench.verification import CORRUPTIONS, check, corrupt

pytest.importorskip("triton", reason="triton is not installed: the kernels' maths can't be interpreted")

PAIR = pairs.load("symmetric_memory_allreduce")
WORLD = 2
SHARED_BYTES = 2**17


def in_ranks(work: Any, tmp_path: Path, *arguments: Any) -> list[Any]:
    """work(rank, *arguments) in WORLD processes; what each returned, in rank order. A hang is an error after 60 s."""
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(work, r, answers, arguments), daemon=True) for r in range(WORLD)]
    # Set while they start: in this process, on a machine with a GPU, other tests' kernels are compiled.
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0
    found = dict(answers.get() for _ in processes)
    return [found[rank] for rank in range(WORLD)]


def _rank(work: Any, rank: int, answers: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    answers.put((rank, work(rank, *arguments)))


def _reference(rank: int, store: str, elements: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    made = [PAIR.baseline.make_inputs({"elements": elements, "dtype": "bfloat16"}, "cpu", seed) for seed in (3, 4)]
    chains = []
    for inputs in made:
        buffer = inputs["x"].clone()
        for _ in range(inputs["calls"]):
            torch.distributed.all_reduce(buffer)
        chains.append(buffer)
    references = [PAIR.baseline.reference(inputs) for inputs in made]
    torch.distributed.destroy_process_group()
    return {"x": made[0]["x"].float().numpy(), "out": [t.float().numpy() for t in chains],
            "ref": [t.numpy() for t in references]}  # fmt: skip


def test_reference_is_what_twenty_all_reduces_leave_and_the_check_can_fail(tmp_path: Path) -> None:
    found = in_ranks(_reference, tmp_path, str(tmp_path / "store"), 64)
    assert (found[0]["x"] != found[1]["x"]).any(), "ranks hold different values"
    for one in found:
        output, stale = (torch.from_numpy(out).bfloat16() for out in one["out"])
        reference = torch.from_numpy(one["ref"][0])
        assert torch.equal(reference, torch.from_numpy(found[0]["ref"][0]))
        expected = sum(torch.from_numpy(rank["x"]) for rank in found) * float(WORLD) ** (PAIR.baseline.CALLS - 1)
        assert torch.equal(reference, expected)
        assert check(output, reference, 4).status == "passed"
        for kind in CORRUPTIONS:
            assert check(corrupt(kind, output, stale), reference, 4).status == "failed", kind
        one_rank_alone = torch.from_numpy(found[0]["x"]) * float(WORLD) ** PAIR.baseline.CALLS
        assert check(one_rank_alone.bfloat16(), reference, 4).status == "failed"
        assert check(output / WORLD, reference, 4).status == "failed", "a call too few"


def _kernels(rank: int, shared: list[torch.Tensor], name: str, elements: int, calls: int) -> dict[str, Any]:
    from serveproof.ops import peer_all_reduce

    given = 0

    def allocate(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, list[int], Any]:
        nonlocal given
        start, given = given, given + -(-count * dtype.itemsize // 64) * 64
        assert given <= SHARED_BYTES
        views = [one[start : start + count * dtype.itemsize].view(dtype) for one in shared]
        return views[rank], [view.data_ptr() for view in views], views

    generator = torch.Generator().manual_seed(rank)
    first = torch.randn(elements, generator=generator).bfloat16()
    cpu = torch.device("cpu")
    if name == "two_shot":
        x, call = peer_all_reduce.two_shot(rank, WORLD, elements, cpu, allocate, block=16, warps=1, most_blocks=2)
    else:
        x = torch.empty_like(first)
        more = {"most_blocks": 2} if name == "pull" else {}
        call = getattr(peer_all_reduce, name)(rank, WORLD, x, allocate, block=16, warps=1, **more)
    x.copy_(first)
    seen = []
    for number in range(calls):
        if number % 2 == rank:
            time.sleep(0.1)  # each in turn comes late: the other must wait
        call()
        seen.append(x.float().numpy().copy())
    return {"first": first.float().numpy(), "seen": seen, "epochs": call.peers.epochs.tolist(),
            "mapped": call.peers.kept[0][0].view(torch.uint8).numpy()}  # fmt: skip


@pytest.mark.parametrize(("name", "elements", "barriers"), [("push", 70, 1), ("pull", 134, 1), ("two_shot", 198, 2)])
def test_our_kernels_sum_over_two_ranks_call_after_call(
    tmp_path: Path, name: str, elements: int, barriers: int
) -> None:
    """Ragged last blocks, more tiles than blocks, both buffers used twice."""
    shared = [torch.zeros(SHARED_BYTES, dtype=torch.uint8).share_memory_() for _ in range(WORLD)]
    calls = 5
    found = in_ranks(_kernels, tmp_path, shared, name, elements, calls)
    total = sum(torch.from_numpy(one["first"]) for one in found)
    for number in range(calls):
        mine, theirs = (torch.from_numpy(one["seen"][number]) for one in found)
        assert torch.equal(mine, theirs), "every rank gets the same bits"
        # the interpreter cuts to bfloat16 where a GPU rounds
        torch.testing.assert_close(mine, total * 2.0**number, rtol=torch.finfo(torch.bfloat16).eps, atol=0)
    assert all(epoch == barriers * calls for one in found for epoch in one["epochs"])
    for one in found:
        if name == "push":  # a word's upper half is the number of the call that wrote it: two buffers in turn
            assert set((torch.from_numpy(one["mapped"]).view(torch.int64) >> 32).tolist()) == {0, calls - 1, calls}
        if name == "pull":
            even, odd = torch.from_numpy(one["mapped"]).view(torch.bfloat16).float().chunk(2)
            assert torch.equal(even, 2 * odd) or torch.equal(odd, 2 * even)
            assert even.abs().sum() > 0


@pytest.mark.parametrize("name", ["push", "pull", "two_shot"])
def test_a_peer_that_never_comes_makes_the_sum_nan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from serveproof.ops import peer_all_reduce

    monkeypatch.setattr(peer_all_reduce, "MOST_POLLS", 3)
    own: list[torch.Tensor] = []

    def allocate(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, list[int], Any]:
        own.extend(torch.zeros(count, dtype=dtype) for _ in range(WORLD))
        return own[-WORLD], [t.data_ptr() for t in own[-WORLD:]], None

    x = torch.ones(16, dtype=torch.bfloat16)
    if name == "two_shot":
        x, call = peer_all_reduce.two_shot(0, WORLD, 16, x.device, allocate, block=16, warps=1)
        call()
        assert x.isnan().all()  # this rank's share, which with one tile is all of it
        return
    call = getattr(peer_all_reduce, name)(0, WORLD, x, allocate, block=16, warps=1)
    call()
    assert x.isnan().all()


def no_memory(*_: Any) -> Any:
    raise AssertionError("refused before anything is allocated: a rank that waits alone would hang")


def test_our_kernels_refuse_what_they_cannot_take() -> None:
    from serveproof.ops import peer_all_reduce

    with pytest.raises(NotImplementedError, match="an even number of bfloat16"):
        peer_all_reduce.push(0, 2, torch.zeros(5, dtype=torch.bfloat16), no_memory)
    with pytest.raises(NotImplementedError, match="an even number of bfloat16"):
        peer_all_reduce.pull(0, 2, torch.zeros(8), no_memory)
    with pytest.raises(NotImplementedError, match="up to 2048 KiB"):
        peer_all_reduce.push(0, 2, torch.zeros(2**21, dtype=torch.bfloat16), no_memory)


def test_requires_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "doesn't exist on a CPU" in PAIR.optimized.requires("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert PAIR.optimized.requires("cuda") == "needs two GPUs, 1 is visible"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert PAIR.optimized.requires("cuda") is None


def test_every_rank_needs_every_gpu_and_nccl_is_a_candidate() -> None:
    assert pairs.uses_every_gpu("symmetric_memory_allreduce")
    made = {"x": torch.zeros(2), "calls": 20, "captured": lambda chain: chain}
    assert list(PAIR.optimized.build(made))[-1] == "nccl"


def test_work_reads_the_own_tensor_once_and_counts_bus_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"elements": 4096, "dtype": "bfloat16"}
    work = PAIR.baseline.work(axes)
    assert (work["bytes"], work["items"]) == (8192, 8192)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    assert PAIR.baseline.work(axes)["items"] == 2 * 7 / 8 * 8192


def test_no_multicast_anywhere() -> None:
    for name in pairs.code_files("symmetric_memory_allreduce"):
        text = (pairs.ROOT / name).read_text().lower()
        assert "multimem_" not in text, name
        assert "multicast_ptr" not in text, name
