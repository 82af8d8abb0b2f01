"""A precision that costs more than its bound: no speedup of it counts, wherever it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveproof import accuracy_gates, comparison, config, results
from serveproof.accuracy_gates import CACHES, PAIRS, RUNGS, WEIGHTS, gated, judge_accuracy, judge_engine
from serveproof.accuracy_records import GreedyCheck, PerplexityRecord, ServedPath
from serveproof.bench.ladder import ways
from serveproof.bench.perplexity import KNOWN
from serveproof.bench.served import PATHS
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import PACKED
from serveproof.pairs import names
from serveproof.report import data, render, summary
from serveproof.results import Estimate, Verdict
from serveproof.serving_results import LadderRecord, Rung
from tests.report import fake_results

ROOT = Path(__file__).resolve().parent.parent


def percent(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, "%")


def served(path: str, cost: Estimate, gap: float = 0.0) -> ServedPath:
    greedy = GreedyCheck(4, 96, 4 if not gap else 3, [None] * 4 if not gap else [None, None, None, 7], gap)
    exact = PATHS[path].exact
    return ServedPath(path, "", {}, exact, "passed", tokens=9, perplexity=9.0, relative_to_bf16=cost, greedy=greedy)


def record(tmp_path: Path, *paths: ServedPath) -> PerplexityRecord:
    fake_results.write_perplexity(tmp_path)
    found = results.read(tmp_path / "perplexity.json", PerplexityRecord)
    return msgspec.structs.replace(found, precisions=[], served=list(paths))


def by_metric(verdicts: list[Verdict]) -> dict[tuple[str, str], str]:
    return {(one.subject, one.metric): one.verdict for one in verdicts}


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0, 10))
def test_a_gate_is_met_or_missed_by_the_whole_interval(low: float, width: float, limit: float) -> None:
    verdict = accuracy_gates._gate("perplexity/x", percent(low, low + width), limit)
    expected = "met" if low + width <= limit else "regressed" if low > limit else "inconclusive"
    assert verdict.verdict == expected


def test_bounds_by_name_and_answers_of_exact_paths(tmp_path: Path) -> None:
    found = record(
        tmp_path,
        served("fp8_cache", percent(0.5, 1.5)),
        served("paged", percent(-0.1, 0.1), gap=0.125),
        served("speculation", percent(-0.1, 0.1), gap=1.5),
        ServedPath("graphs", "", {}, True, "skipped", "CUDA graphs need CUDA"),
        ServedPath("tensor_parallel", "", {}, True, "error", "RuntimeError: gone"),
    )
    assert by_metric(judge_accuracy(found, 2.0)) == {
        ("served/fp8_cache", "relative_to_bf16"): "met",
        ("served/paged", "relative_to_bf16"): "met",
        ("served/paged", "greedy"): "met",
        ("served/speculation", "relative_to_bf16"): "met",
        ("served/speculation", "greedy"): "failed",
        ("served/graphs", "relative_to_bf16"): "skipped",
        ("served/tensor_parallel", "relative_to_bf16"): "failed",
    }
    tight = by_metric(judge_accuracy(found, 2.0, {"fp8_cache": 0.4}))
    assert tight[("served/fp8_cache", "relative_to_bf16")] == "regressed"


def test_what_uses_a_failed_precision_has_regressed_and_the_rest_has_not(tmp_path: Path) -> None:
    accuracy = judge_accuracy(record(tmp_path, served("fp8_cache", percent(3, 4))), 2.0)
    verdicts = [
        Verdict("fp8_kv_cache/b8", "speedup", "met", "inside", value=1.9),
        Verdict("fp8_kv_cache/b9", "speedup", "absent", "no expectation"),
        Verdict("fp8_kv_cache/b10", "speedup", "skipped", "no GPU"),
        Verdict("flash_sdp/a", "speedup", "met", "inside", value=1.9),
    ]
    found = {one.subject: one for one in gated(verdicts, accuracy)}
    assert [one.verdict for one in found.values()] == ["regressed", "regressed", "skipped", "met"]
    assert found["fp8_kv_cache/b8"].failed_gate == "served/fp8_cache"
    assert found["fp8_kv_cache/b8"].reason.startswith("fast but wrong: served/fp8_cache is beyond its accuracy gate")
    assert "(+3.5 %, 2 allowed); its speed alone was met" in found["fp8_kv_cache/b8"].reason
    assert found["flash_sdp/a"] is verdicts[3]
    assert gated(verdicts, []) == verdicts


def test_a_rung_and_those_above_it_fall(tmp_path: Path) -> None:
    rungs = [Rung(name, "", "passed", speedup=1.0) for name in ("eager", "int8 weights", "fp8 cache", "speculation")]
    ladder = LadderRecord("cpu", "CPU", "m", "bf16", 1, 1, 1, rungs, fake_results.provenance())
    accuracy = judge_accuracy(record(tmp_path, served("fp8_cache", percent(3, 4))), 2.0)
    found = judge_engine([ladder], [], accuracy)
    assert [(one.subject, one.verdict) for one in found] == [
        ("ladder/fp8 cache", "regressed"),
        ("ladder/speculation", "regressed"),
    ]


def test_a_chosen_pair_is_gated_too(tmp_path: Path) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    case = fake_results.passed("b8", 4.0, 1.0, {"batch": 8}, False, "")
    fake_results.write_pair(folder, "fp8_kv_cache", [case], fake_results.samples("b8", 4.0, 1.0))
    costly = record(tmp_path, served("fp8_cache", percent(5, 6)))
    found = replace(comparison.find(folder, ["fp8_kv_cache"]), perplexity=costly)
    verdicts = comparison.judge("cpu", found, None, comparison.Gate(2.0), ["fp8_kv_cache"])
    assert {(one.subject, one.verdict, one.failed_gate) for one in verdicts} == {
        ("fp8_kv_cache/b8", "regressed", "served/fp8_cache")
    }


def test_the_page_shows_a_fast_but_wrong_pair_in_red(tmp_path: Path) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    case = fake_results.passed("b8", 4.0, 1.0, {"batch": 8}, False, "")
    fake_results.write_pair(folder, "fp8_kv_cache", [case], fake_results.samples("b8", 4.0, 1.0))
    judgement = results.read(folder / "judgement.json", results.Judgement)
    fast = Verdict("fp8_kv_cache/b8", "speedup", "met", "inside", unit="x", value=4.0, low=3.9, high=4.1)

    def page_with(cost: Estimate) -> tuple[summary.Headline, str]:
        planted = msgspec.structs.replace(
            results.read(folder / "perplexity.json", PerplexityRecord), served=[served("fp8_cache", cost)]
        )
        results.write(folder / "perplexity.json", planted)
        accuracy = judge_accuracy(planted, 2.0)
        verdicts = gated([fast], accuracy) + accuracy
        results.write(folder / "judgement.json", msgspec.structs.replace(judgement, verdicts=verdicts))
        machine = data.collect(folder)
        return summary.headline(machine), render.render([machine], fake_results.provenance())

    headline, page = page_with(percent(0.1, 0.3))
    assert "fp8_kv_cache" in headline.pays
    assert "fast but wrong" not in page
    headline, page = page_with(percent(5, 6))
    assert "fp8_kv_cache" not in headline.pays
    assert "fp8_kv_cache" in headline.regressed
    page = page.replace("<wbr>", "")
    name = page.index('fp8_kv_cache</a></span> <span class="case">b8</span>')
    row = page[page.rindex("<tr", 0, name) : page.index("</tr>", name)]
    assert row.startswith('<tr class="bad">')
    assert "fast but wrong: served/fp8_cache" in row


def test_the_table_names_what_there_is() -> None:
    gates = {f"perplexity/{name}" for name in KNOWN} | {f"served/{name}" for name in PATHS}
    for table in (PAIRS, RUNGS, WEIGHTS, CACHES):
        assert {gate for one in table.values() for gate in one} <= gates
    assert set(PAIRS) <= set(names(ROOT))
    assert set(RUNGS) <= {way.name for device in ("cpu", "cuda") for way in ways(device)}
    assert set(WEIGHTS) == set(PACKED)
    assert set(CACHES) <= set(DTYPES)


def test_the_schema_names_what_there_is() -> None:
    schema: Any = config.read_yaml(ROOT / "config/config.schema.yaml")
    assert schema["$defs"]["precision"]["enum"] == list(KNOWN)
    assert schema["$defs"]["path"]["enum"] == list(PATHS)
    settings = config.read(ROOT)
    settings["accuracy_gate"]["bounds"] = {"int4_ask": 3}
    with pytest.raises(config.UserError, match=r"accuracy_gate\.bounds': 'int4_ask' is not"):
        config.validate(settings, ROOT / "config/config.schema.yaml", "config/config.yaml")
