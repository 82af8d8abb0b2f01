"""How ranks meet, watch each other and end: two nodes by rendezvous, a rank that stops, a rank whose port is taken."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist

from serveproof.distributed.heartbeat import Heartbeat
from serveproof.distributed_records import RankedRecord
from serveproof.ports import free_port
from tests import forked
from tests.distributed.conftest import Started, ended


def test_two_nodes_of_one_rank_each_meet_over_loopback(start: Started, tmp_path: Path) -> None:
    master = f"127.0.0.1:{free_port()}"
    out = tmp_path / "record.json"
    both = [
        start(
            "scripts/multi_gpu_validation.py", "--threads", "1", "--out", out, ranks=1,
            launcher=("--nodes", "2", "--node-rank", str(node), "--master", master),
        )
        for node in (1, 0)
    ]  # fmt: skip
    for process in both:
        code, output = ended(process)
        assert code == 0, output
    record = msgspec.json.decode(out.read_bytes(), type=RankedRecord)
    assert (record.world, record.nodes, record.backend) == (2, 2, "gloo")
    statuses = {case.case: case.status for case in record.cases}
    assert statuses.pop("all_reduce_by_symmetric_memory") == "skipped"
    assert statuses.pop("tensor_parallel_speed") == "skipped"
    assert set(statuses.values()) == {"passed"}, statuses
    assert {"tensor_parallel_logits", "expert_parallel_layer", "dead_rank_is_noticed"} <= statuses.keys()
    timed = {(point.collective, point.bytes) for point in record.collectives}
    names = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
    assert timed == {(name, size) for name in names for size in (2**12, 2**16, 2**20)}
    for one in record.collectives:
        share = {"all_reduce": 1.0, "broadcast": 1.0}.get(one.collective, 0.5)
        assert one.bus_bandwidth_bytes_per_s == pytest.approx(1e6 * share * one.bytes / one.time.value)
    assert record.matrix is not None
    assert record.matrix.bandwidth_bytes_per_s[0][1] > 1e6
    assert record.matrix.bandwidth_bytes_per_s[0][0] is None


STOPPED = """
import torch.distributed as dist, time, torch
from serveproof.distributed.group import joined
with joined("cpu", {}, limit_s=40, beat_s=0.1, silence_s=1.5) as ranks:
    dist.barrier()
    print("ready", flush=True)
    while True:
        dist.all_reduce(torch.ones(4))
        time.sleep(0.01)
"""


@pytest.mark.parametrize("signal_sent", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_stops_or_dies_is_noticed_within_seconds(signal_sent: signal.Signals, tmp_path: Path) -> None:
    """A stopped process keeps its connections: no collective fails, the heartbeat alone tells."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    begun = forked.start(str(script), [(), ()], tmp_path)
    until = time.monotonic() + 60
    while not all(said.exists() and "ready" in said.read_text() for _, said in begun):
        assert time.monotonic() < until, [said.read_text() for _, said in begun]
        time.sleep(0.05)
    victim = begun[1][0]
    assert victim.pid
    os.kill(victim.pid, signal_sent)
    started = time.monotonic()
    ((code, said),) = forked.ended(begun[:1], limit_s=20)
    assert time.monotonic() - started < 10
    victim.kill()
    assert code != 0
    if signal_sent == signal.SIGSTOP:
        assert "serveproof: rank 0: rank 1 gives no sign of life; ending" in said


def test_a_port_that_rank_0_can_not_have(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        begun = forked.start("scripts/multi_gpu_validation.py", [()], tmp_path, world=2, port=port)
        ((code, said),) = forked.ended(begun)
    assert code == 2
    assert f"rank 0: 127.0.0.1:{port} can't be had" in said


def test_a_heart_that_beats_is_not_lost_and_one_that_ended_well_neither() -> None:
    store = dist.HashStore()
    lost: list[int] = []
    hearts = [Heartbeat(store, rank, 2, lost.append, beat_s=0.02, silence_s=0.2) for rank in range(2)]
    for heart in hearts:
        heart.first()
    for heart in hearts:
        heart.start()
    time.sleep(0.6)
    assert lost == []
    hearts[1].stop()
    time.sleep(0.6)
    assert lost == [], "a rank that said that it is done is not dead"
    hearts[0].stop()


def test_a_heart_that_stops_is_lost() -> None:
    store = dist.HashStore()
    lost: list[int] = []
    hearts = [Heartbeat(store, rank, 2, lost.append, beat_s=0.02, silence_s=0.2) for rank in range(2)]
    for heart in hearts:
        heart.first()
    hearts[0].start()
    hearts[0].thread.join(5)
    assert lost == [1]
