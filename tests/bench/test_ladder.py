"""The ladder and the engine's load: every rung answers, precision is the only thing that changes perplexity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from serveproof.bench import engine_load, ladder, padded
from serveproof.engine.config import read_config
from serveproof.engine.loader import load_model
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with
from serveproof.results import Ceilings
from serveproof.serving_results import EngineRecord, LadderRecord

WIDE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
CEILINGS = Ceilings(1e12, 1e12, {"float32": 1e15, "bfloat16": 1e15}, "made up for a test")


def prompts_of(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(96, (5 + 3 * n,), generator=generator).tolist() for n in range(count)]


def test_the_padded_batch_gives_the_engines_tokens(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama(**WIDE)[0])
    prompts, outputs = prompts_of(5), [3, 9, 1, 6, 4]
    engine = start_with(model, Settings("fp32", max_running=3, token_budget=20, max_model_len=64))
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in outputs]
    expected = [one.tokens for one in engine.generate(prompts, params)]
    for sdpa in (False, True):
        assert padded.generate(model, prompts, outputs, 2, sdpa) == expected


def test_the_score_through_the_cache_is_the_models(tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama(**WIDE)[0])
    text = torch.randint(96, (200,), generator=torch.Generator().manual_seed(5)).tolist()
    engine = start_with(model, Settings("fp32", max_running=1, token_budget=20, max_model_len=256))
    with torch.inference_mode():
        logits_LV = model.logits(model.full(torch.tensor([text]))[0])
        expected = float(torch.nn.functional.cross_entropy(logits_LV[:-1], torch.tensor(text[1:])))
    assert ladder.score(engine, text) == pytest.approx(expected, abs=1e-5)
    assert engine.snapshot().used_blocks == 0


def test_every_rung_of_the_ladder(tiny_llama: Callable[..., Any]) -> None:
    directory, _ = tiny_llama(**WIDE)
    problem = ladder.Problem(prompts_of(4), [6] * 4, torch.arange(90).tolist())
    settings = Settings("bf16", max_running=4, token_budget=32, max_model_len=128)
    rungs = ladder.climb(load_model(directory, torch.bfloat16), problem, settings, True, lambda _: None)
    by_name = {rung.name: rung for rung in rungs}
    assert [rung.name for rung in rungs] == [way.name for way in ladder.ways("cpu")]
    assert {name for name, rung in by_name.items() if rung.status == "skipped"} == {
        "compiled block",
        "CUDA graphs",
        "fused kernels",
    }
    assert all(rung.reason for rung in rungs if rung.status == "skipped")
    passed = [rung for rung in rungs if rung.status == "passed"]
    assert len(passed) == 8
    assert passed[0].speedup == 1
    assert all(rung.perplexity and abs(rung.perplexity_change_percent or 0) < 30 for rung in passed)
    assert by_name["int8 weights"].weight_bytes < by_name["prefix cache"].weight_bytes
    assert by_name["fp8 cache"].cache_bytes * 2 == by_name["int8 weights"].cache_bytes
    assert by_name["paged"].perplexity != by_name["int8 weights"].perplexity != by_name["fp8 cache"].perplexity


def test_the_ideal_time_is_counted_by_hand(tiny_llama: Callable[..., Any]) -> None:
    """One prompt of 4 tokens and 3 tokens of output: one step of 4 tokens, then two of one; bytes bind."""
    directory, _ = tiny_llama(**WIDE)
    config, model = read_config(directory / "config.json"), load_model(directory)
    work = engine_load.work_of(config, 4.0, 4.0, 4.0)
    matrices = sum(p.nbytes for name, p in model.named_parameters() if p.dim() == 2)  # tied: the embedding is the head
    assert work.weight_bytes == matrices
    engine = start_with(model, Settings("fp32", max_running=2, token_budget=20, max_model_len=64, overlap=False))
    load = engine_load.Load([[1, 2, 3, 4]], [3])
    found = engine_load.run_load(engine, load, work, CEILINGS, "float32")
    context = 4 + 5 + 6
    assert found.ideal_s == pytest.approx((3 * work.weight_bytes + context * work.context_bytes) / 1e12)
    assert (found.steps, found.output_tokens) == (3, 3)
    assert 0 < found.roofline_fraction < 1


def test_the_scripts_write_their_records(
    tiny_llama: Callable[..., Any],
    tmp_path: Path,
    load_script: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, _ = tiny_llama(**WIDE)

    def run(name: str, *arguments: object) -> str:
        common = ("--model", directory, "--threads", 1)
        monkeypatch.setattr("sys.argv", [name, *map(str, (*common, *arguments))])
        load_script(name).main()
        return capsys.readouterr().out

    out = run(
        "engine_benchmark", "--requests", 3, "--prompts", 4, 9, "--outputs", 2, 5, "--prefill", 32, "--max-running", 2,
        "--token-budget", 16, "--runs", 1, "--weights", "int8", "--out", tmp_path / "engine.json",
    )  # fmt: skip
    record = msgspec.json.decode((tmp_path / "engine.json").read_bytes(), type=EngineRecord)
    assert record.weights == "int8"
    assert record.token_ms > 0
    assert f"{record.runs[0].output_tokens_per_s:.0f} output tokens/s" in out
    out = run(
        "inference_optimizations_blackwell", "--requests", 2, "--shared", 4, "--prompt", 12, "--tokens", 6,
        "--batch", 2, "--out", tmp_path / "ladder.json",
    )  # fmt: skip
    climbed = msgspec.json.decode((tmp_path / "ladder.json").read_bytes(), type=LadderRecord)
    assert [rung.name in out for rung in climbed.rungs] == [True] * len(ladder.ways("cpu"))


def test_a_model_that_is_not_there(load_script: Callable[[str], Any], main_error: Callable[..., str]) -> None:
    for name in ("engine_benchmark", "inference_optimizations_blackwell", "inference_serving_multigpu"):
        error = main_error(load_script(name), "--model", "llama-900b")
        assert "llama-900b" in error
