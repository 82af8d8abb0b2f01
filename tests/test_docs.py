"""The pages point at what exists: relative links, anchors, and the tree that README and docs/architecture.md show."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, punctuation dropped, blanks to hyphens."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree_of(page: Path) -> str:
    found = re.search(r"^## Tree\n+```\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    assert found, f"{name(page)} has no tree"
    return found[1]


def test_there_are_pages() -> None:
    assert {"README.md", "docs/architecture.md", "docs/method.md", "docs/libraries.md"} <= {*map(name, PAGES)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_point_at_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} points at {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{name(page)} points outside the repository: {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)} points at {link}: no such heading"


def test_every_path_of_the_tree_exists() -> None:
    for line in tree_of(ROOT / "README.md").splitlines():
        for path in re.split(r"\s{2,}", line)[0].split(", "):
            # X stands for any pair
            assert list(ROOT.glob(path.replace("_X.", "_*."))), f"README's tree has {path}, which is not there"


def test_every_file_is_in_the_tree() -> None:
    listed = {
        path.replace("_X.", "_*.")
        for line in tree_of(ROOT / "README.md").splitlines()
        for path in re.split(r"\s{2,}", line)[0].split(", ")
    }
    there = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if there.returncode:
        pytest.skip("no git checkout: what belongs to it is not known")
    unsaid = ("README.md", ".gitignore", "serveproof/__init__.py")  # the page itself, and what everybody expects
    for name in there.stdout.split():
        path = PurePosixPath(name)
        said = any(path.match(one) for one in listed) or any(f"{folder}/" in listed for folder in path.parents)
        assert said or name in unsaid, f"README's tree is silent on {name}"


def test_programs_and_folders_of_docs_are_in_the_tree() -> None:
    tree = tree_of(ROOT / "README.md")
    for path in (ROOT / "docs").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"docs/{path.name}/" in tree
        elif path.suffix == ".py":
            assert f"docs/{path.name}" in tree


def test_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall((ROOT / "README.md").read_text())}
    for page in (ROOT / "docs").rglob("*.md"):
        assert page in linked, f"README has no link to {name(page)}"


def test_both_pages_show_the_same_tree() -> None:
    assert tree_of(ROOT / "README.md") == tree_of(ROOT / "docs/architecture.md")


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    page = (ROOT / "docs/libraries.md").read_text(encoding="utf-8")
    for requirement in wanted:
        package = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"(^\| |, ){re.escape(package)}[ ,]", page, re.M), f"docs/libraries.md is silent on {package}"


def test_the_b200_page_shows_what_the_expectations_hold() -> None:
    page = (ROOT / "docs/b200_public_records.md").read_text(encoding="utf-8")
    for pair, cases in json.loads((ROOT / "expectations_b200.json").read_text())["pairs"].items():
        row = next(line for line in page.splitlines() if f"| {pair} |" in line)
        cells = [cell.strip() for cell in row.split("|")]
        for case in cases.values():
            for metric in case["metrics"].values():
                assert metric["expected"] in [float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)]


def test_the_citation_is_whole() -> None:
    """By the Citation File Format 1.2.0 (its schema-guide.md): what must be, and what a reference must have."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for key in ("message", "title", "abstract", "authors", "keywords", "version", "license", "type"):
        assert citation[key], key
    assert citation["type"] == "software"
    for one in [citation, *citation["references"]]:
        for author in one["authors"]:
            assert set(author) <= {"name"} or {"family-names", "given-names"} <= set(author)
    for one in citation["references"]:
        assert {"type", "title", "authors", "year", "doi"} <= set(one)
        assert re.fullmatch(r"10\.\d{4,9}/\S+", one["doi"])
    released = re.search(
        rf"^## \[{re.escape(citation['version'])}\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert released
    # a date, once there is a release; none before
    assert str(citation.get("date-released", "not")) == released[1]


def test_version_and_licence_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
