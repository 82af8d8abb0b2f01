"""Traces made by hand: what torch's profiler writes on a GPU, as far as it is read, with known times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serveproof.bench.profiling_trace import CALLS, END, WINDOW
from serveproof.results import Ceilings

CEILINGS = Ceilings(1e12, 1e12, {"float32": 1e12}, "made up")


def host(category: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}


def device(name: str, ts: float, dur: float, correlation: int, category: str = "kernel") -> dict[str, Any]:
    args = {"correlation": correlation, "stream": 7}
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": args}


def launch(ts: float, correlation: int) -> dict[str, Any]:
    return host("cuda_runtime", "cudaLaunchKernel", ts, 2.0, correlation=correlation)


def step(wait: bool = False, python: bool = False) -> list[dict[str, Any]]:
    """One call of 100 us: two products launched at 10 and 60, whose kernels take 20 us from 15 and from 65.

    wait: between them the host waits for the first, from 20 to 58. python: with the functions around all that.
    """
    shapes = {"Input Dims": [[64, 64], [64, 64], []]}
    events = [
        host("user_annotation", WINDOW, 0.0, 120.0),
        host("user_annotation", CALLS, 0.0, 100.0),
        host("cpu_op", "aten::mm", 9.0, 5.0, **shapes),
        launch(10.0, 1),
        device("gemm_kernel<float>", 15.0, 20.0, 1),
        host("cpu_op", "aten::mm", 59.0, 5.0, **shapes),
        launch(60.0, 2),
        device("gemm_kernel<float>", 65.0, 20.0, 2),
        host("user_annotation", END, 100.0, 15.0),
    ]
    if wait:
        events += [
            host("cpu_op", "aten::item", 19.0, 39.5),
            host("cpu_op", "aten::_local_scalar_dense", 19.5, 38.8),
            host("cuda_runtime", "cudaStreamSynchronize", 20.0, 38.0, correlation=9),
        ]
    if python:
        events += [
            host("python_function", "kernels/optimized_x.py(7): run", 1.0, 98.0),
            host("python_function", "kernels/optimized_x.py(3): read_it", 18.0, 41.0 if wait else 0.5),
            host("python_function", "torch/_tensor.py(1): item", 18.5, 40.2 if wait else 0.1),
        ]
    return events


def written(folder: Path, name: str, events: list[dict[str, Any]]) -> Path:
    file = folder / name
    file.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}))
    return file
