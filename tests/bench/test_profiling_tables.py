"""From traces to tables: shares that add up, launches, waits with their stacks, broken traces, bounds."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from serveproof.bench import profiling_hotspots as tables
from serveproof.bench import profiling_trace as trace
from serveproof.bench.profiling_counts import Counted, Work
from serveproof.bench.profiling_minimal import fill
from serveproof.bench.profiling_slices import window_of
from serveproof.errors import UserError
from serveproof.profile_records import MOST_FLAMES, Profile
from tests.bench.profiling_traces import CEILINGS, device, host, launch, step, written

SHAPES = "[64, 64] [64, 64]"
FLOPS, BYTES = 2.0 * 64**3, 3.0 * 64 * 64 * 4
COUNTED = Counted({("aten::mm", SHAPES): Work(FLOPS, BYTES, "float32")}, {("aten::mm", SHAPES): 2})


def filled(tmp_path: Path, *, wait: bool = False, unprofiled_ms: float = 0.1, calls: int = 1) -> Profile:
    times = written(tmp_path, "times.json", step(wait))
    stacks = written(tmp_path, "stacks.json", step(wait, python=True))
    found = Profile("passed", calls=calls, unprofiled_ms=unprofiled_ms)
    found.notes = []
    fill(found, times, stacks, times, COUNTED, CEILINGS, "cuda", found.notes)
    return found


def test_the_window_is_covered_once_and_whole(tmp_path: Path) -> None:
    window = window_of(trace.read(written(tmp_path, "t.json", step(wait=True))))
    pieces = sorted((one.start, one.end) for one in window.owned)
    assert sum(end - start for start, end in pieces) == pytest.approx(window.end - window.start) == 100.0
    assert all(first[1] <= then[0] + 1e-9 for first, then in pairwise(pieces))


def test_kernels_have_their_operations_work_and_their_own_time(tmp_path: Path) -> None:
    found = filled(tmp_path)
    row = next(row for row in found.hotspots if row.kind == "kernel")
    assert (row.name, row.operation, row.shapes, row.count) == ("gemm_kernel<float>", "aten::mm", SHAPES, 2.0)
    assert row.time_ms == pytest.approx(0.040)
    assert (row.flops, row.bytes) == (pytest.approx(2 * FLOPS), pytest.approx(2 * BYTES))
    # 2 x 2 x 64^3 FLOPs at 1e12 a second, which is more than 2 x 3 x 64 x 64 x 4 bytes take
    assert row.bound_by == "flops"
    assert row.roofline_ms == pytest.approx(1e3 * 2 * FLOPS / 1e12)
    assert row.saved_ms == pytest.approx(row.time_ms - row.roofline_ms)
    assert sum(one.share for one in found.hotspots) == pytest.approx(1.0)
    assert sum(one.time_ms for one in found.hotspots) == pytest.approx(0.1)


def test_host_rows_are_scaled_to_the_time_without_a_profiler(tmp_path: Path) -> None:
    found = filled(tmp_path, unprofiled_ms=0.07)
    assert found.host_scale == pytest.approx((70 - 40) / 60)
    assert sum(row.time_ms for row in found.hotspots) == pytest.approx(0.07)
    assert next(row for row in found.hotspots if row.kind == "kernel").time_ms == pytest.approx(0.040)


def test_a_device_that_idles_is_bound_by_launches(tmp_path: Path) -> None:
    launches = filled(tmp_path).launches
    assert launches is not None
    assert (launches.kernels, launches.launches) == (2.0, 2.0)
    assert (launches.busy_ms, launches.gap_ms) == (pytest.approx(0.040), pytest.approx(0.030))
    assert launches.idle_share == pytest.approx(0.6)
    assert launches.launch_bound


def test_a_device_that_is_busy_is_not(tmp_path: Path) -> None:
    launches = filled(tmp_path, unprofiled_ms=0.042).launches
    assert launches is not None
    assert not launches.launch_bound


def test_idle_because_the_host_waits_is_no_launch_bound(tmp_path: Path) -> None:
    events = [
        *step()[:2],
        host("cpu_op", "aten::mm", 1.0, 4.0),
        launch(2.0, 1),
        device("kernel", 5.0, 20.0, 1),
        host("cuda_runtime", "cudaDeviceSynchronize", 6.0, 92.0, correlation=3),
    ]
    window = window_of(trace.read(written(tmp_path, "t.json", events)))
    launches = tables.launches(window, 1, 0.1)
    assert launches is not None
    assert launches.idle_share > tables.LAUNCH_BOUND
    assert not launches.launch_bound


def test_a_wait_is_named_with_the_stack_that_caused_it(tmp_path: Path) -> None:
    (wait,) = filled(tmp_path, wait=True).waits
    assert wait.what == "cudaStreamSynchronize"
    assert wait.stack == ["kernels/optimized_x.py(7): run", "kernels/optimized_x.py(3): read_it"]
    assert wait.time_ms == pytest.approx(0.038)


def test_our_own_wait_at_the_end_is_none(tmp_path: Path) -> None:
    events = [*step(), host("cuda_runtime", "cudaDeviceSynchronize", 101.0, 10.0, correlation=5)]
    window = window_of(trace.read(written(tmp_path, "t.json", events)))
    assert tables.waits(window, 1, "cuda") == []


def test_a_trace_cut_short_is_a_note_or_the_profiles_error(tmp_path: Path) -> None:
    whole = written(tmp_path, "whole.json", step(python=True))
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole.read_bytes()[:-40])
    packed = tmp_path / "cut.json.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes())[:-20])
    for file in (cut, packed, tmp_path / "absent.json"):
        with pytest.raises(UserError, match=f"{file.name}: not a whole trace"):
            trace.read(file)
    found = Profile("passed", calls=1, unprofiled_ms=0.1)
    notes: list[str] = []
    fill(found, whole, cut, cut, COUNTED, CEILINGS, "cuda", notes)
    assert found.status == "passed"
    assert found.hotspots
    assert len(notes) == 2
    assert all("not a whole trace" in note and "\n" not in note for note in notes)
    fill(found, cut, whole, whole, COUNTED, CEILINGS, "cuda", [])
    assert (found.status, "not a whole trace" in found.reason) == ("error", True)


def test_a_trace_without_its_window_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no window of calls"):
        window_of(trace.read(written(tmp_path, "t.json", step()[2:])))


def test_a_kept_trace_opens_and_is_bounded(tmp_path: Path) -> None:
    events = [*step(), *(host("cpu_op", f"op{n} {n * 7919 % 10007}", 30 + n * 1e-3, 1e-4) for n in range(5000))]
    file, out = written(tmp_path, "t.json", events), tmp_path / "t.json.gz"
    size, note = trace.keep(file, out, 10**7)
    assert (note, size) == ("", out.stat().st_size)
    size, note = trace.keep(file, out, 20_000)
    assert size == out.stat().st_size <= 20_000
    kept = json.loads(gzip.decompress(out.read_bytes()))["traceEvents"]
    assert 0 < len(kept) < len(events)
    assert f"first {len(kept)} of {len(events)} events" in note
    size, note = trace.keep(file, tmp_path / "none.gz", 10)
    assert size == 0
    assert "no trace kept" in note
    assert not (tmp_path / "none.gz").exists()


def test_an_operation_of_many_shapes_is_one_row(tmp_path: Path) -> None:
    events = step()[:2] + [
        host("cpu_op", "aten::add", 1.0 + 3 * n, 2.0, **{"Input Dims": [[n + 1]]})
        for n in range(tables.MOST_SHAPES + 1)
    ]
    rows = tables.rows_of(window_of(trace.read(written(tmp_path, "t.json", events))), Counted())
    found, left_out, *_ = tables.hotspots(rows, Counted(), CEILINGS, 1, 0.1)
    (row,) = [one for one in found if one.kind == "operation"]
    assert row.shapes.startswith(f"{tables.MOST_SHAPES + 1} shapes")
    assert (row.count, left_out) == (tables.MOST_SHAPES + 1, 0)


def test_an_icicle_is_bounded_and_nested(tmp_path: Path) -> None:
    events = step()[:2] + [host("python_function", f"f{n}", 0.1 + n * 0.49, 0.48) for n in range(200)]
    found = tables.flames(window_of(trace.read(written(tmp_path, "t.json", events))))
    assert len(found) == MOST_FLAMES
    assert (found[0].depth, found[0].width) == (0, pytest.approx(1.0))
    nested = tables.flames(window_of(trace.read(written(tmp_path, "n.json", step(python=True)))))
    for above, below in pairwise(nested):
        if below.depth == above.depth + 1:
            assert above.start <= below.start
            assert below.start + below.width <= above.start + above.width + 1e-9


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("<built-in method mm of type object at 0x7f84cc4cea40>", "<built-in method mm of type>"),
        ("nn.Module: MLP_27", "nn.Module: MLP"),
        ("x" * 500, "x" * 239 + "…"),
    ],
)
def test_names_are_cleaned_and_bounded(name: str, cleaned: str) -> None:
    assert trace.clean(name) == cleaned
