"""The check itself: right outputs pass, the four corruptions and subtler faults don't, for every pair in kernels/."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
import yaml

from serveproof import pairs
from serveproof.bench import inputs, verification, worker
from serveproof.bench.host_sync import HostSync
from serveproof.bench.job import Case, Job

WORKLOADS = yaml.safe_load((pairs.ROOT / "config/workloads.yaml").read_text())
CASES = [(name, case) for name in pairs.names() for case in WORKLOADS[name].get("cpu", [])]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['case']}" for name, case in CASES])
def test_every_pair_passes_and_rejects_the_four_corruptions(name: str, case: dict[str, Any]) -> None:
    pair = pairs.load(name)
    refusal = pair.optimized.requires("cpu")
    if refusal:
        pytest.skip(refusal)
    job = Job(
        mode="verify", pair=name, cases=[], device="cpu", threads=1, rounds=0, warmup_rounds=0, seed=7
    )  # fmt: skip
    found = worker.verify_case(pair, msgspec.convert({"tier": "cpu", **case}, Case), job).verified
    assert found is not None
    assert (found.status, found.reason) == ("passed", "")
    ran = [check for check in found.candidates.values() if check.status != "skipped"]
    for check in (found.baseline, found.optimized, *ran):
        assert check.must_fail == dict.fromkeys(verification.CORRUPTIONS, True)


def test_every_pair_has_a_workload_and_every_workload_a_pair() -> None:
    assert set(WORKLOADS) == set(pairs.names())


@pytest.fixture
def reference() -> torch.Tensor:
    return torch.randn(4096, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rounding_to_the_dtype_passes(reference: torch.Tensor) -> None:
    assert verification.check(reference.bfloat16(), reference, 2).status == "passed"


def test_one_wrong_row_in_many_fails_though_the_norm_passes(reference: torch.Tensor) -> None:
    reference[17] *= 1e-2  # a small row: its own scale counts, not the output's
    output = reference.bfloat16()
    output[17] = 0
    found = verification.check(output, reference, 2)
    assert found.relative_error is not None
    assert found.relative_bound is not None
    assert found.relative_error < found.relative_bound
    assert found.status == "failed"
    assert "an element's error" in found.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_fails(reference: torch.Tensor, value: float) -> None:
    output = reference.float()
    output[0, 0] = value
    assert verification.check(output, reference, 1e6).status == "failed"


def test_another_shape_is_an_error(reference: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="shape"):
        verification.errors(reference[:-1], reference)


def test_a_check_that_accepts_corruption_is_itself_a_failure() -> None:
    pair = pairs.load("flash_sdp")
    axes = {"batch": 1, "heads": 1, "seq": 16, "head_dim": 8, "causal": False, "dtype": "float32"}
    refill = inputs.Refill(pair, axes, "cpu", seed=0)
    runs = {"flash": pair.optimized.build(pairs.restrict(pair.optimized, refill.live))}
    found = verification.verify(runs, {"flash": 1e8}, set(), refill, pair)["flash"]
    assert found.status == "failed"
    assert "it can't fail" in found.reason


def test_one_closure_that_raises_stops_no_other() -> None:
    pair = pairs.load("flash_sdp")
    axes = {"batch": 1, "heads": 1, "seq": 16, "head_dim": 8, "causal": False, "dtype": "float32"}
    refill = inputs.Refill(pair, axes, "cpu", seed=0)

    def broken() -> torch.Tensor:
        raise RuntimeError("on purpose")

    good = pair.baseline.build(pairs.restrict(pair.baseline, refill.live))
    runs = {"broken": broken, "flat": lambda: good().flatten(), "good": good}
    found = verification.verify(runs, dict.fromkeys(runs, 32.0), set(), refill, pair)
    assert [check.status for check in found.values()] == ["error", "error", "passed"]
    assert "on purpose" in found["broken"].reason
    assert "shape" in found["flat"].reason


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotImplementedError("head dim 72"), "skipped", "head dim 72"),
        (torch.cuda.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0"), "out_of_memory", "asked for 20.00 GiB"),
        (RuntimeError("DefaultCPUAllocator: tried to allocate 4096 bytes."), "out_of_memory", "asked for 4096 bytes"),
        (MemoryError(), "out_of_memory", "the host gave no more memory"),
        (HostSync("waits"), "failed", "waits"),
    ],
)
def test_an_exception_has_a_status(error: Exception, status: str, reason: str) -> None:
    assert verification.outcome_of(error) == (status, reason)


def test_real_memory_that_is_not_there_says_how_much_was_asked_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert verification.outcome_of(caught.value) == ("out_of_memory", f"asked for {2**62} bytes")
