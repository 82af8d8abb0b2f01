"""Peak memory and page faults of one side, in a process that runs nothing else."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serveproof.pairs import Inputs, Run


def tensor_bytes(inputs: Inputs) -> int:
    """Bytes of the tensors among the inputs, each storage once."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in inputs.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


@dataclass(frozen=True)
class Probe:
    """One side's memory. The faults of getrusage(2), in this process: minor ones gave a page that the side touched for
    the first time, major ones had to read it from disk. None on CUDA.
    """

    peak_bytes: int
    minor_faults: int | None
    major_faults: int | None


def _faults() -> tuple[int, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt, usage.ru_majflt


def peak_of(build: Callable[[Inputs], Run], inputs: Inputs, device: str) -> Probe:
    """Peak memory and page faults of allocating `inputs` anew, building and running twice, after one rehearsal.

    On CUDA the caching allocator's peak, and no faults: device memory is mapped when it's allocated, never on demand.
    On a CPU the peak of the resident set above where it stood, with the kernel's high-water mark reset first (proc(5),
    clear_refs value 5).
    """

    def allocate_build_run() -> int:
        own = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        run = build(own)
        for _ in range(2):
            run()
        return tensor_bytes(own)

    allocate_build_run()  # libraries load, kernels compile, back ends are chosen: not this side's memory
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        before_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        least_bytes = allocate_build_run()
        return Probe(max(torch.cuda.max_memory_allocated() - before_bytes, least_bytes), None, None)
    Path("/proc/self/clear_refs").write_text("5")
    before_bytes, before = _status_bytes("VmRSS"), _faults()
    least_bytes = allocate_build_run()
    minor, major = (now - then for now, then in zip(_faults(), before, strict=True))
    return Probe(max(_status_bytes("VmHWM") - before_bytes, least_bytes), minor, major)
