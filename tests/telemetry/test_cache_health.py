"""What is called a leak, and what is not; the script finds planted ones and exits by them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from serveproof.engine.block_manager import BlockManager
from serveproof.engine.sequence import Sequence
from serveproof.telemetry.cache_health import Round, faults, growth_bytes, server_faults
from serveproof.telemetry.scrape import Sample, parse
from tests.load_test.conftest import null_server  # noqa: F401 - a server to watch


def rounds(live: list[int], blocks_out: int = 0, references: int = 0, allocated: int = 0) -> list[Round]:
    return [Round(n, one, allocated, 2 * allocated, 0, 0, blocks_out, references) for n, one in enumerate(live)]


def test_growth_and_lost_blocks_are_faults() -> None:
    assert faults(rounds([50, 100, 100, 100, 100]), 1024) == []
    assert faults(rounds([0, *range(0, 50_000, 5_000)]), 1024) == [
        "live tensors grow by 5000 bytes a round over 10 rounds"
    ]
    assert "blocks were not given back" in faults(rounds([1, 1, 1, 1], blocks_out=2), 1024)[0]
    assert "references" in faults(rounds([1, 1, 1, 1], references=1), 1024)[0]
    assert growth_bytes([0, 0, 0, 10_000, 10_000, 10_000, 10_000]) < 10_000 / 4


def test_one_jump_is_no_growth() -> None:
    assert faults(rounds([0, 10**6, 10**6, 10**6, 2 * 10**6, 2 * 10**6, 2 * 10**6, 2 * 10**6]), 10**6 / 3) == []


def test_fragmentation_is_what_is_reserved_and_not_used() -> None:
    assert rounds([0], allocated=30)[0].fragmentation == pytest.approx(0.5)
    assert rounds([0])[0].fragmentation == 0


def test_a_server_that_keeps_blocks_of_nobody_leaks() -> None:
    busy, idle, kept = Sample(1, 0, 0.4), Sample(0, 0, 0.0), Sample(0, 0, 0.2)
    assert server_faults([(0, busy), (1, kept), (2, idle), (9, idle)], settle_s=5) == []
    assert "20.00 %" in server_faults([(0, busy), (1, kept), (7, kept)], settle_s=5)[0]
    assert server_faults([(0, kept), (3, busy), (6, kept), (9, busy)], settle_s=5) == [], "it was never idle so long"


def test_names_of_vllm_and_sglang_are_read() -> None:
    page = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 3\n'
    page += 'vllm:num_requests_running{engine="1"} 2\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    page += 'vllm:kv_cache_usage_perc{engine="1"} 0.5\n'
    assert parse(page) == Sample(5, None, 0.5)
    assert parse("sglang:num_running_reqs 4\nsglang:num_queue_reqs 1\nsglang:token_usage 0.1\n") == Sample(4, 1, 0.1)
    assert parse("") == Sample()


@pytest.fixture
def monitoring(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("cache_monitoring")


def call(monitoring: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cache_monitoring", *map(str, arguments)])
    try:
        monitoring.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_healthy_engine_passes_and_planted_leaks_fail(
    monitoring: ModuleType,
    tiny_llama: Callable[..., tuple[Path, torch.nn.Module]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_llama()[0]
    with FakeTensorMode():
        traced = torch.ones(4096)  # as compilers leave them: they have no memory
    small = ("--model", model, "--rounds", 5, "--requests", 6, "--prompt", 20, "--output", 5)
    assert call(monitoring, monkeypatch, *small) == 0
    assert "no leak was found" in capsys.readouterr().out
    release, kept = BlockManager.release, []

    def forgetful(self: BlockManager, sequence: Sequence) -> None:
        if sequence.request_id.endswith("-1"):
            self.references[sequence.blocks[0]] += 1
        release(self, sequence)

    monkeypatch.setattr(BlockManager, "release", forgetful)
    assert call(monitoring, monkeypatch, *small) == 1
    assert "cache blocks were not given back" in capsys.readouterr().err
    monkeypatch.setattr(BlockManager, "release", lambda self, s: (kept.append(torch.ones(4096)), release(self, s))[1])
    assert call(monitoring, monkeypatch, *small) == 1
    assert "live tensors grow by" in capsys.readouterr().err
    del traced


def test_beside_a_server(
    monitoring: ModuleType,
    null_server: Callable[..., str],  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = ("--url", null_server(slots=4), "--duration", 0.5, "--interval", 0.1, "--settle", 0.2)
    assert call(monitoring, monkeypatch, *watch) == 0
    assert "cache usage" in capsys.readouterr().out


def test_bad_input_is_one_line(monitoring: ModuleType, main_error: Callable[..., str], tmp_path: Path) -> None:
    assert "one of the two" in main_error(monitoring)
    assert "at least 4" in main_error(monitoring, "--model", tmp_path, "--rounds", 2)
    assert "127.0.0.1:9" in main_error(monitoring, "--url", "http://127.0.0.1:9", "--duration", 1)
    assert "not an http" in main_error(monitoring, "--url", "file:///etc/passwd", "--duration", 1)
