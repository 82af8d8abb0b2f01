"""Profiles as records: what the report's tests draw."""

from __future__ import annotations

from pathlib import Path

from serveproof import results
from serveproof.profile_records import (
    Allocations,
    Counters,
    DecoderPoint,
    DecoderProfileRecord,
    Flame,
    Hotspot,
    Launches,
    Profile,
    ProfileCase,
    ProfileRecord,
    Wait,
)
from serveproof.results import Metric
from tests.report import fake_results

TIMELINE = [(0.0, 0), (1.0, 4_000_000)]


def profile(text: str = "") -> Profile:
    """Three rows: a kernel at half its roofline, an operation of unknown work, a Python function."""
    rows = [
        Hotspot(
            "kernel", f"gemm<float>{text}", "aten::mm", "[8, 8]", f"mlp{text}", 2, 4.0, 0.4, 1e9, 1e7, 2.0, "flops", 2.0
        ),
        Hotspot("operation", "aten::odd", "aten::odd", "", "", 1, 1.0, 0.1, None, None, None, "unknown", 1.0),
        Hotspot("python", f"kernels/x.py(3): loop{text}", "", "", "", 1, 5.0, 0.5, None, None, None, "host", 5.0),
    ]
    rows.sort(key=lambda row: -row.saved_ms)
    return Profile(
        status="passed",
        backend=f"plain{text}",
        calls=4,
        unprofiled_ms=10.0,
        profiled_ms=12.0,
        host_scale=0.8,
        hotspots=rows,
        left_out=3,
        left_out_ms=0.01,
        flames=[
            Flame("the calls", "range", 0, 0.0, 1.0),
            Flame(f"kernels/x.py(3): loop{text}", "python", 1, 0.0, 0.5),
            Flame(f"gemm<float>{text}", "kernel", 1, 0.5, 0.4),
        ],
        waits=[Wait("cudaStreamSynchronize", 1.0, 0.5, [f"kernels/x.py(9): run{text}", "kernels/x.py(3): item"])],
        launches=Launches(2, 2, 4.0, 5.0, 0.6, True),
        memory=Allocations(2, 8e6, 4_000_000, TIMELINE, [("aten::mm", 2, 8e6)], {"reserved": Metric(1e9, "bytes")}),
        counters=[Counters(f"gemm<float>{text}", 2, 4.0, 1e7, 2.5e9, 0.5, 5e9, 0.25, 0.75, 0.5, 1e9, 0.5, "flops")],
        trace="c_baseline.json.gz",
        trace_bytes=12345,
        notes=[f"counted: a call's first 400 operations{text}"],
    )


def write_pair(folder: Path, pair: str, case: str, text: str = "", code_sha: str = "") -> None:
    """profile.json of a pair: one case whose optimized side was skipped."""
    skipped = Profile("skipped", f"no permission to read the GPU's counters{text}")
    record = ProfileRecord(
        pair=pair,
        hardware="cpu",
        mode="deep_dive",
        code_sha=code_sha,
        cases=[ProfileCase(case, "cpu", "float32", profile(text), skipped)],
        notes=[f"Nsight Systems (nsys) is not installed{text}"],
        seconds=12.0,
        measure_seconds=24.0,
        provenance=fake_results.provenance(text),
    )
    results.write(folder / "pairs" / pair / "profile.json", record)


def write_decoder(folder: Path, text: str = "") -> None:
    points = [DecoderPoint("prefill", 1, 64, 64, profile(text)), DecoderPoint("decode", 8, 64, 8, profile(text))]
    record = DecoderProfileRecord(
        "cpu", f"config.json{text}", 135, "float32", "minimal", points, [], 1.0, fake_results.provenance(text)
    )
    results.write(folder / "decoder_profile.json", record)
