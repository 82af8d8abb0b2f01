"""The published site: whole, self-contained, readable without a script; a broken one never takes a good one's place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import yaml

from serveproof import results
from serveproof.publishing import runs, site, workflow_files
from tests.publishing.conftest import PUBLISHED, ROOT
from tests.report import fake_results

SITES = ("published", "hostile")


class Page(HTMLParser):
    """What a page has: its tags, its links, its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def ours(folder: Path) -> list[Path]:
    """The index and each run's list of files; the reports have tests of their own."""
    return [folder / "index.html", *folder.glob("*/ro-crate-preview.html")]


@pytest.mark.parametrize("name", SITES)
def test_pages_need_no_script_and_nothing_from_elsewhere(name: str, request: pytest.FixtureRequest) -> None:
    for path in ours(request.getfixturevalue(name)):
        page = Page(path)
        assert not page.tags["script"] + page.tags["img"] + page.tags["link"], path
        assert not [one for one in page.attributes if one.startswith("on")], path
        for link in page.links:
            assert not re.match(r"[a-z]+:|//", link), link
            assert (path.parent / unquote(link)).is_file(), f"{path} points at {link}"


def test_the_index_lists_hardware_date_commit_and_verdicts(published: Path) -> None:
    text = Page(published / "index.html").text
    judged = results.read(ROOT / "reports/published/h200/judgement.json", results.Judgement)
    counts = Counter(one.verdict for one in judged.verdicts)
    assert "NVIDIA H200" in text
    assert f"{counts['met']} met" in text
    run = runs.read(ROOT / "reports/published/h200")
    assert run.commits[0][:12] in text
    assert run.date_utc[:10] in text
    assert run.date_utc == max(one.date_utc for one in run.origins.values())


def test_every_record_is_published_as_it_is(published: Path) -> None:
    for name in PUBLISHED:
        source = ROOT / "reports/published" / name
        files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        assert files
        for file in files:
            assert (published / name / "results" / file).read_bytes() == (source / file).read_bytes()
        assert (published / name / "index.html").read_text().startswith("<!doctype html>")
    assert (published / ".nojekyll").exists()


def test_the_workflow_is_the_one_of_the_run(published: Path) -> None:
    origin = runs.read(ROOT / "reports/published/h200").newest
    assert origin
    readme = (published / "h200" / "README.md").read_text()
    assert origin.commit in readme
    assert "at earlier commits" in readme
    assert (published / "h200" / "workflow" / "kernels" / "optimized_flash_sdp.py").is_file()


def test_a_commit_that_git_has_not_is_said(hostile: Path) -> None:
    # fake records name a commit that is nowhere
    assert "is not at hand" in (hostile / "cpu" / "README.md").read_text()
    assert (hostile / "cpu" / "workflow" / "Snakefile").read_bytes() == (ROOT / "Snakefile").read_bytes()


def test_a_commit_is_never_an_option_of_git(tmp_path: Path) -> None:
    origin = fake_results.provenance()
    origin.commit = f"--output={tmp_path / 'written'}"
    workflow_files.write(ROOT, origin, tmp_path / "workflow")
    assert not (tmp_path / "written").exists()


def test_publishing_again_gives_the_same(published: Path, tmp_path: Path) -> None:
    site.write(runs.read_all([ROOT / "reports/published/2x_h200"]), ROOT, tmp_path / "site")
    for path in sorted((tmp_path / "site" / "2x_h200").rglob("*")):
        # a report's charts are numbered through the process that draws them, and the crate has the report's hash
        if path.is_file() and path.name not in ("index.html", "ro-crate-metadata.json", "ro-crate-preview.html"):
            same = published / "2x_h200" / path.relative_to(tmp_path / "site" / "2x_h200")
            assert path.read_bytes() == same.read_bytes(), path


def test_a_site_that_can_not_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("the old one")
    found = runs.read_all([ROOT / "reports/published/2x_h200"])
    with pytest.raises(FileNotFoundError):
        site.write(found, tmp_path / "no repository", out)
    assert (out / "index.html").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


@pytest.fixture
def publish(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("publish")


def test_nothing_measured_is_one_line(
    publish: ModuleType, main_error: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "make report" in main_error(publish)
    assert "hardware.json" in main_error(publish, "--results", tmp_path)
    twice = [tmp_path / one / "cpu" for one in ("a", "b")]
    assert "two folders are named cpu" in main_error(publish, "--results", *twice)


def test_the_pages_workflow_is_pinned_and_runs_what_there_is() -> None:
    flow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
    # YAML 1.1 reads the key `on` as True
    assert set(flow) == {"name", True, "permissions", "concurrency", "jobs"}
    assert flow["permissions"] == {"contents": "read"}
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert not [one for one in used if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", one)]
    assert flow["jobs"]["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert flow["jobs"]["deploy"]["needs"] == "build"
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    targets = re.findall(r"\bmake ([a-z-]+)", commands)
    made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert targets
    assert set(targets) <= set(made)
    uploads = next(step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    assert uploads["with"]["path"] == "reports/site"
