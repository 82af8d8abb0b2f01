"""Machines beside each other: only what has the same axes, and what others published is marked as such."""

from __future__ import annotations

from pathlib import Path

import msgspec

from serveproof import expectations
from serveproof.report import machines, summary
from serveproof.report.data import collect
from serveproof.report.machines import Beside, sourced_cases
from serveproof.report.render import render
from tests.report import fake_results

ROOT = Path(__file__).parents[2]


def table(*folders: Path, public: bool = False) -> Beside:
    found = [collect(folder) for folder in folders]
    records = sourced_cases([expectations.load(ROOT / "expectations_b200.json")]) if public else []
    return machines.beside([one.hardware for one in found], [summary.case_rows(one) for one in found], records)


def test_every_machine_is_a_column(tmp_path: Path) -> None:
    found = table(*(fake_results.write_machine(tmp_path / key, key=key) for key in ("cpu", "h200")))
    assert found.measured == ["cpu", "h200"]
    causal = next(row for row in found.rows if (row.pair, row.case) == ("flash_sdp", "causal"))
    assert [cell.value for cell in causal.cells] == ["1.85×", "1.85×"]
    failed = next(row for row in found.rows if row.pair == "regional_compilation")
    assert [cell.words for cell in failed.cells] == ["failed", "failed"]


def test_one_name_with_other_shapes_is_two_rows(tmp_path: Path) -> None:
    folders = [fake_results.write_machine(tmp_path / key, key=key) for key in ("cpu", "h200")]
    case = fake_results.passed("full", 9.0, 3.0, {"B": 64, "S": 8192}, False, "")
    fake_results.write_pair(folders[1], "flash_sdp", [case], fake_results.samples("full", 9.0, 3.0))
    rows = [row for row in table(*folders).rows if (row.pair, row.case) == ("flash_sdp", "full")]
    assert [[cell.value or cell.words for cell in row.cells] for row in rows] == [["1.32×", "–"], ["–", "3.00×"]]


def test_public_records_stand_beside_the_same_shapes_alone() -> None:
    found = table(ROOT / "reports/published/h200", public=True)
    assert found.sourced == ["b200"]
    both = {(row.pair, row.case): row.cells[-1].value for row in found.rows if row.cells[-1].value}
    assert both == {
        ("flash_sdp", "b8_s256_h8_d64_qkv"): "1.53×",
        ("flashinfer_block_sparse", "s2048_h45_d64_block16_window2"): "3.95×",
        ("regional_compilation", "l16_h3072_f12288_s1024"): "1.27×",
    }
    assert {one.pair for one in found.alone} == {"nvfp4_mlp", "runtime_scheduler", "dense_attention"}


def test_the_page_marks_them_as_sourced() -> None:
    public = sourced_cases([expectations.load(ROOT / "expectations_b200.json")])
    page = render([collect(ROOT / "reports/published/h200")], fake_results.provenance(), public=public)
    section = page[page.index('id="machines"') : page.index('id="pairs"')]
    assert "sourced, not measured" in section
    assert "no: other shapes" in section
    assert "not measured by us" in section


def test_what_we_measured_is_no_public_record() -> None:
    ours = expectations.load(ROOT / "expectations_h200.json")
    assert sourced_cases([ours]) == []
    first = expectations.load(ROOT / "expectations_b200.json")
    for cases in first.pairs.values():
        for name, case in cases.items():
            source = msgspec.structs.replace(case.metrics["speedup"], source=expectations.MEASURED)
            cases[name] = msgspec.structs.replace(case, metrics={"speedup": source})
    assert sourced_cases([first]) == []
