"""Hardware counters: what is asked for, what is made of it, and what is said where they can't be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serveproof.bench import profiling, profiling_counters
from serveproof.bench.job import Case, Job
from serveproof.bench.profiling_counters import counters, known_metrics, reason_of, wanted
from serveproof.bench.profiling_job import RawKernel
from serveproof.profile_records import Launches, Profile
from serveproof.results import Ceilings

CEILINGS = Ceilings(4e12, 4e12, {"bfloat16": 8e14}, "made up")
BASES = {name.partition(".")[0] for name in (*profiling_counters.ALWAYS, *profiling_counters.SCALAR)}
HOPPER = BASES | {
    "sm__inst_executed_pipe_tensor",
    "sm__ops_path_tensor_src_bf16_dst_fp32",
    "sm__ops_path_tensor_src_bf16_dst_fp32_sparsity_on",
    "sm__cycles_elapsed",
}
NO_PERMISSION = (
    "==PROF== Connected to process 77 (/usr/bin/python3.12)\n"
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the "
    "target device 0. For instructions on enabling permissions see https://developer.nvidia.com/ERR_NVGPUCTRPERM\n"
    "==WARNING== No kernels were profiled.\n"
)


def ncu(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program named ncu that comes first on PATH."""
    file = folder / "ncu"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_is_asked_for_is_what_the_gpu_has() -> None:
    asked, missing = wanted(HOPPER)
    assert missing == []
    assert set(profiling_counters.ALWAYS) <= set(asked)
    assert "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active" in asked
    assert "sm__ops_path_tensor_src_bf16_dst_fp32.sum" in asked
    assert not [name for name in asked if "sparsity" in name]


def test_what_the_gpu_lacks_is_named_and_left_out() -> None:
    asked, missing = wanted(HOPPER - {"dram__bytes", "sm__inst_executed_pipe_tensor"})
    assert missing == [profiling_counters.DRAM_BYTES, profiling_counters.TENSOR_SHARES[0]]
    assert not set(missing) & set(asked)


def test_the_query_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Device NVIDIA H200 (GH100)\\n\\ndram__bytes    Counter   byte   # of bytes\\nsm__x Ratio\\n"
    ncu(tmp_path, monkeypatch, f"printf '{lines}'")
    assert known_metrics() == ({"dram__bytes", "sm__x"}, "")


def test_without_the_tool_or_its_permission_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert known_metrics() == (set(), "Nsight Compute (ncu) is not installed: no hardware counters")
    (tmp_path / "said").write_text(NO_PERMISSION)
    ncu(tmp_path, monkeypatch, f"cat {tmp_path / 'said'}; exit 1")
    names, problem = known_metrics()
    assert names == set()
    assert "no permission to read the GPU's counters (ERR_NVGPUCTRPERM)" in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (NO_PERMISSION, "no permission"),
        ("==ERROR== Failed to find metric regex:^x$\n", "Failed to find metric"),
        ("", "it said nothing"),
        ("Something else <b>broke</b>\nand more", "Something else <b>broke</b>"),
    ],
)
def test_a_reason_is_one_line(printed: str, said: str) -> None:
    reason = reason_of(printed)
    assert said in reason
    assert "\n" not in reason


def launch(name: str, time_ns: float, dram: float, tensor_flops: float, pipe: float) -> RawKernel:
    metrics = {
        profiling_counters.TIME: time_ns,
        profiling_counters.DRAM_BYTES: dram,
        profiling_counters.DRAM_SHARE: 50.0,
        profiling_counters.TENSOR_SHARES[1]: pipe,
        "sm__ops_path_tensor_src_bf16_dst_fp32.sum": tensor_flops,
        "sm__sass_thread_inst_executed_op_ffma_pred_on.sum": 100.0,
    }
    return RawKernel(name, metrics)


def test_a_kernels_launches_are_summed_and_its_shares_weighted_by_time() -> None:
    name = "void gemm<bf16>(<script>alert(1)</script>)"
    launches = [launch(name, 3e6, 8e9, 1.6e12, 80.0), launch(name, 1e6, 0.0, 0.0, 0.0), launch("b", 1e5, 4e8, 0, 0)]
    rows, left_out = counters(launches, CEILINGS, "bfloat16")
    assert (left_out, [row.kernel for row in rows]) == (0, [name, "b"])
    first = rows[0]
    assert (first.launches, first.time_ms) == (2, pytest.approx(4.0))
    assert first.tensor_share == pytest.approx(0.6)
    assert first.dram_bytes_per_s == pytest.approx(2e12)
    assert first.flops == pytest.approx(1.6e12 + 2 * 2 * 100)
    # 1.6e12 at 8e14 a second and 8e9 bytes at 4e12 both take 2 ms of the 4
    assert first.fraction == pytest.approx(0.5, rel=1e-3)
    assert (rows[1].bound_by, rows[1].fraction) == ("bytes", pytest.approx(1.0))
    assert first.l2_share is None


def job(device: str, ranks: int = 1) -> Job:
    return Job("profile", "flash_sdp", [Case("c", "gpu", {}, 2.0)], device, 1, 1, 1, 0, ranks=ranks)


@pytest.mark.parametrize(("device", "ranks", "said"), [("cpu", 1, "deep_dive is minimal"), ("cuda", 2, "other ranks")])
def test_where_nothing_can_be_counted_the_rest_stays(device: str, ranks: int, said: str) -> None:
    profiles = {"c": {"baseline": Profile("passed"), "optimized": Profile("passed")}}
    notes: list[str] = []
    assert profiling.deep_dive(job(device, ranks), profiles, {"c": "bfloat16"}, CEILINGS, notes) == {}
    assert len(notes) == 1
    assert said in notes[0]


def test_counters_go_into_the_profiles_that_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ncu(tmp_path, monkeypatch, "printf '" + "".join(f"{name} Counter\\n" for name in sorted(HOPPER)) + "'")
    asked = []

    def answered(one, worker, limit_s):
        asked.append((one.side, one.served, one.most_operations, worker))
        if one.side == "baseline":
            return b"", "code -9: \nkilled"
        return b'{"kernels":[{"name":"k","metrics":{"gpu__time_duration.sum":1000.0}}],"reason":""}', ""

    monkeypatch.setattr(profiling, "answered", answered)
    busy = Launches(1e4, 1e4, 1.0, 0.0, 0.0, False)
    profiles = {
        "c": {
            "baseline": Profile("passed", backend="plain"),
            "optimized": Profile("passed", backend="x", launches=busy),
        }
    }
    notes: list[str] = []
    raw = profiling.deep_dive(job("cuda"), profiles, {"c": "bfloat16"}, CEILINGS, notes)
    assert [(side, limit) for side, _, limit, _ in asked] == [("baseline", 0), ("optimized", profiling.MOST_COUNTED)]
    assert asked[1][1] == {"c": "x"}
    assert notes == []
    assert profiles["c"]["baseline"].counters == []
    assert "killed" in profiles["c"]["baseline"].notes[0]
    assert [row.kernel for row in profiles["c"]["optimized"].counters] == ["k"]
    assert "counted: a call's first 1 of 10000 kernels" in profiles["c"]["optimized"].notes
    assert raw["c"]["optimized"][0].name == "k"


def test_a_graph_is_one_operation_and_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    replied = b'{"kernels":[' + b",".join([b'{"name":"k","metrics":{}}'] * 321) + b'],"reason":""}'
    monkeypatch.setattr(profiling, "answered", lambda *_: (replied, ""))
    profile = Profile("passed", launches=Launches(321.0, 1.0, 4.1, 0.3, 0.02, False))
    assert len(profiling.count_side(job("cuda"), job("cuda").cases[0], "optimized", profile, []).kernels) == 321
    assert profile.notes == []


def test_without_nsight_systems_a_note_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profiling.nsight_systems(None, tmp_path, 1) == ["Nsight Systems (nsys) is not installed: no report of it"]  # type: ignore[arg-type]
