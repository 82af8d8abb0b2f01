"""A planted slow operation is found and named first, on this machine's CPU, through the real profiler."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from serveproof.bench.profiling_counts import count
from serveproof.bench.profiling_minimal import profile
from serveproof.bench.profiling_trace import read
from tests.bench.profiling_traces import CEILINGS

a_NN = torch.randn(128, 128)


def planted_loop() -> int:
    total = 0
    for number in range(60_000):
        total += number * number
    return total


def planted_read(x: torch.Tensor) -> float:
    return x.sum().item()


def planted_product() -> torch.Tensor:
    big_NN = a_NN.repeat(6, 6)
    return big_NN @ big_NN


def test_a_python_loop_is_first(tmp_path: Path) -> None:
    def run() -> torch.Tensor:
        planted_loop()
        return torch.softmax(a_NN @ a_NN, -1)

    found = profile(run, "cpu", CEILINGS, tmp_path / "t.json.gz", 10**6)
    assert found.status == "passed"
    first = found.hotspots[0]
    assert first.kind == "python"
    assert first.name.endswith(": planted_loop")
    assert first.share > 0.5
    assert first.bound_by == "host"
    assert any(one.name.endswith(": planted_loop") for one in found.flames)
    assert found.notes == []
    assert {event.name for event in read(tmp_path / "t.json.gz")} >= {"aten::mm", "aten::_softmax"}


def test_a_value_that_is_read_is_named_with_its_stack() -> None:
    def run() -> float:
        return planted_read(a_NN @ a_NN)

    (wait,) = profile(run, "cpu", CEILINGS).waits
    assert wait.what == "aten::_local_scalar_dense"
    assert wait.stack[-1].endswith(": planted_read")
    assert wait.count == 1.0


def test_nothing_read_is_no_wait() -> None:
    assert profile(lambda: a_NN @ a_NN, "cpu", CEILINGS).waits == []


def test_a_heavy_operation_is_first_and_has_its_work() -> None:
    def run() -> torch.Tensor:
        (a_NN + 1).sum()
        return planted_product()

    first = profile(run, "cpu", CEILINGS).hotspots[0]
    assert (first.kind, first.name) == ("operation", "aten::mm")
    assert first.flops == pytest.approx(2 * 768**3)
    assert first.bytes == pytest.approx(3 * 768 * 768 * 4)


def test_sleep_is_the_functions_that_sleeps() -> None:
    def run() -> None:
        time.sleep(0.01)

    first = profile(run, "cpu", CEILINGS).hotspots[0]
    assert first.name == "<built-in function sleep>"
    assert first.time_ms > 5


def test_the_allocators_view() -> None:
    found = profile(lambda: (a_NN + 1) * 2, "cpu", CEILINGS).memory
    assert found is not None
    by_name = {name: (times, size) for name, times, size in found.top}
    assert by_name["aten::add"] == by_name["aten::mul"] == (1.0, a_NN.nbytes)
    # the numbers 1 and 2 are tensors of a few bytes
    assert 2 * a_NN.nbytes <= found.peak_bytes <= found.allocated_bytes < 2 * a_NN.nbytes + 100
    assert max(size for _, size in found.timeline) == found.peak_bytes


def test_what_cannot_be_counted_is_a_note() -> None:
    def run() -> torch.Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("no dispatch mode here <b>please</b>")
        return a_NN @ a_NN

    found = profile(run, "cpu", CEILINGS)
    assert found.status == "passed"
    assert found.notes == [
        "FLOPs and bytes are missing: the operations can't be followed (no dispatch mode here <b>please</b>)"
    ]
    assert found.hotspots[0].bound_by == "unknown"


class TestCounts:
    def work(self, run, name: str):
        found = count(run).work
        return next(work for (operation, _), work in found.items() if operation == name)

    def test_linear_counts_as_a_product_in_inference_mode(self) -> None:
        weight, x = torch.randn(32, 16), torch.randn(8, 16)
        with torch.inference_mode():
            found = count(lambda: torch.nn.functional.linear(x, weight)).work
        assert sum(work.flops for work in found.values()) == 2 * 8 * 16 * 32
        assert sum(work.bytes for work in found.values()) == 4 * (8 * 16 + 16 * 32 + 8 * 32)

    @pytest.mark.parametrize(("causal", "share"), [(False, 1.0), (True, 65 / 128)])
    def test_attention(self, causal: bool, share: float) -> None:
        q = torch.randn(2, 4, 64, 16)
        name = "aten::_scaled_dot_product_flash_attention_for_cpu"
        work = self.work(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=causal), name)
        assert work.flops == 4 * 2 * 4 * 64 * 64 * 16 * share

    def test_an_embedding_reads_what_it_gives(self) -> None:
        table, rows = torch.randn(1000, 8), torch.tensor([1, 2, 3])
        assert self.work(lambda: torch.nn.functional.embedding(rows, table), "aten::embedding").bytes == 24 + 2 * 96

    def test_views_move_nothing_and_expanded_inputs_are_read_once(self) -> None:
        x = torch.randn(1, 64)
        found = count(lambda: x.expand(100, 64).reshape(100, 8, 8).transpose(1, 2) + 1).work
        assert sum(work.bytes for (name, _), work in found.items() if name != "aten::add") == 0
        assert self.work(lambda: x.expand(100, 64) + 1, "aten::add").bytes == 4 * (64 + 6400)

    def test_a_copy_does_not_read_what_it_overwrites(self) -> None:
        x, y = torch.randn(64), torch.randn(64)
        assert self.work(lambda: x.copy_(y), "aten::copy_").bytes == 2 * 256

    def test_grouped_products(self) -> None:
        x, weights = torch.randn(32, 16), torch.randn(4, 16, 8)
        ends = torch.tensor([8, 16, 24, 32], dtype=torch.int32)
        try:
            work = self.work(lambda: torch.nn.functional.grouped_mm(x, weights, offs=ends), "aten::_grouped_mm")
        except (AttributeError, RuntimeError) as error:
            pytest.skip(f"no grouped product here: {error}")
        assert work.flops == 2 * 32 * 16 * 8

    def test_an_operation_without_a_formula_is_unknown_and_not_zero(self) -> None:
        with torch.library._scoped_library("serveproof_test", "DEF") as library:
            library.define("double(Tensor x) -> Tensor")
            library.impl("double", lambda x: x * 2, "CPU")
            found = count(lambda: torch.ops.serveproof_test.double(torch.ones(4)))
        assert found.of("serveproof_test::double", "[4]") is None
