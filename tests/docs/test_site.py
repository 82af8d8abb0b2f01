"""The documentation as a site: built strictly by `make docs` in a copy, whole without a network, made from the code."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.workflow.conftest import ROOT, repository

sys.path.insert(0, str(ROOT / "docs"))
import reference_pages
import site_hooks


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    repository(folder)
    command = ["make", "docs", f"PYTHON={sys.executable}", "VENV=none"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "docs"


def page(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_it_is_built_strictly(site: Path) -> None:
    assert "--strict" in (ROOT / "Makefile").read_text()
    assert re.search(r"^lint:.*\bdocs\b", (ROOT / "Makefile").read_text(), re.M)
    for part in ("index", "tutorial/first_report", "howto/judge_a_change", "reference/config", "method", "statistics"):
        assert "<article" in page(site, part)


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)|<link[^>]+href=\"([^\"]+)", path.read_text())
        assert not [one for pair in loaded for one in pair if re.match(r"https?:|//", one)], path


def test_lists_and_blocks_within_lists_are_not_left_as_text(site: Path) -> None:
    for path in site.rglob("*.html"):
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article")[0]
        prose = re.sub(r"<(pre|code)[^>]*>.*?</\1>", "", article, flags=re.S)
        assert not re.findall(r"\n\s*(?:[-*] |\d+\. |```|\| )\S.*", prose), path


def test_a_link_out_of_docs_leads_to_a_copy(site: Path) -> None:
    assert 'href="source/expectations_b200.json"' in page(site, "b200_public_records")
    assert (site / "source/expectations_b200.json").read_bytes() == (ROOT / "expectations_b200.json").read_bytes()


def test_every_key_of_the_schemas_is_in_the_reference() -> None:
    text = reference_pages.config(ROOT)
    for name in ("config", "workloads"):
        schema = yaml.safe_load((ROOT / f"config/{name}.schema.yaml").read_text())
        described = re.findall(r"description: \"?([^,}\"\n]+)", (ROOT / f"config/{name}.schema.yaml").read_text())
        assert [one for one in schema.get("properties", {}) if f"| `{one}` |" not in text] == []
        assert [one for one in described if one.strip().replace("|", "\\|") not in text] == []
    assert "| `perplexity.window_tokens` | integer (minimum 2) | `1024` |" in text


def test_every_option_is_in_the_reference(load_script: Callable[[str], ModuleType]) -> None:
    text = reference_pages.cli(ROOT)
    for path in (ROOT / "scripts").glob("*.py"):
        assert f"## python scripts/{path.name}\n" in text
        for option in re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", path.read_text()):
            assert f"`{option}`" in text, f"{path.name} {option}"
    assert str(ROOT) not in text
    assert "| `report` |" in text


@pytest.mark.skipif(not (ROOT / "cli/aisp.py").is_file(), reason="this checkout has no cli/aisp.py")
def test_the_command_line_is_in_the_reference() -> None:
    text = reference_pages.cli(ROOT)
    assert "## python -m cli.aisp bench run\n" in text
    assert "`--targets`" in text.partition("## python -m cli.aisp bench run\n")[2].partition("\n## ")[0]


def test_parsers_are_left_as_they_were(load_script: Callable[[str], ModuleType]) -> None:
    before = argparse.ArgumentParser.parse_args
    found = reference_pages.parser_of(load_script("judge").main)
    assert argparse.ArgumentParser.parse_args is before
    assert found.parse_args(["--key", "cpu", "--out", "x"]).key == "cpu"
    with pytest.raises(LookupError):
        reference_pages.parser_of(lambda: None)


def test_every_record_and_field_is_in_the_reference() -> None:
    text = reference_pages.records(ROOT)
    from serveproof import load_records, results

    for module in (results, load_records):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, results.Record) and kind is not results.Record:
                section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
                for one in msgspec.structs.fields(kind):
                    assert f"| `{one.encode_name}` |" in section, f"{name}.{one.encode_name}"


def test_every_metric_is_in_the_reference() -> None:
    from serveproof.telemetry import engine_metrics, gpu_metrics

    text = reference_pages.metrics()
    for name in [*engine_metrics.METRICS, *(one.name for one in gpu_metrics.METRICS)]:
        assert f"| `{name}` |" in text


@given(st.text(st.characters(exclude_characters="\\")))
def test_a_cell_is_one_cell(text: str) -> None:
    lines = reference_pages.table(("a", "b"), [(reference_pages.cell(text), "end")]).rstrip("\n").split("\n")
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 3


@pytest.mark.parametrize(
    ("page_name", "link", "there"),
    [
        ("index.md", "docs/method.md#verdicts", "method.md#verdicts"),
        ("index.md", "CHANGELOG.md", "CHANGELOG.md"),
        ("index.md", "LICENSE", "source/LICENSE"),
        ("index.md", "docs/report.png", "report.png"),
        ("b200_public_records.md", "../expectations_b200.json", "source/expectations_b200.json"),
        ("pairs/flash_sdp.md", "../../CITATION.cff", "../source/CITATION.cff"),
        ("pairs/flash_sdp.md", "../b200_public_records.md", "../b200_public_records.md"),
        ("CONTRIBUTING.md", "README.md#add-a-pair", "index.md#add-a-pair"),
        ("index.md", "https://a.example/b.md", "https://a.example/b.md"),
        ("index.md", "#licence", "#licence"),
    ],
)
def test_links_are_moved(page_name: str, link: str, there: str) -> None:
    assert site_hooks.linked(f"see [it]({link}) now", page_name) == f"see [it]({there}) now"
