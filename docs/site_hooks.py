"""What mkdocs does beyond docs/: README.md is the home page, the reference is made, links out of docs/ lead to copies.

A page of docs/ may point at any file of the repository (../expectations_b200.json): on GitHub that link works as it is.
In the site such a file is copied to source/, and the link points there, so the site needs no repository address.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import reference_pages  # noqa: E402 - beside this file
from mkdocs.structure.files import File, Files  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

# page of the site -> file at the root of the repository
ROOT_PAGES = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
PAGE_OF = {file: page for page, file in ROOT_PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=\))")


def inside(target: str) -> str | None:
    """Where a file of the repository is in the site: a page, a copy under source/, or None where there is no such file.

    target: its path from the root of the repository.
    """
    if target in PAGE_OF:
        return PAGE_OF[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"source/{target}" if (ROOT / target).is_file() else None


def linked(markdown: str, page: str) -> str:
    """The text with its relative links as the site needs them. page: the page's path in the site."""
    home = posixpath.dirname(ROOT_PAGES.get(page, f"docs/{page}"))

    def moved(found: re.Match[str]) -> str:
        link, anchor = found.groups()
        if re.match(r"[a-z]+:", link):
            return found[0]
        target = inside(posixpath.normpath(posixpath.join(home, link)))
        return found[0] if target is None else posixpath.relpath(target, posixpath.dirname(page) or ".") + anchor

    return LINK.sub(moved, markdown)


def outside(markdown: str, page: str) -> set[str]:
    """Files of the repository outside docs/ that a page points at, from the root."""
    home = posixpath.dirname(ROOT_PAGES.get(page, f"docs/{page}"))
    links = {posixpath.normpath(posixpath.join(home, link)) for link, _ in LINK.findall(markdown)}
    return {one for one in links if not one.startswith("docs/") and one not in PAGE_OF and (ROOT / one).is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and the files that pages point at."""
    made = {page: (ROOT / file).read_text(encoding="utf-8") for page, file in ROOT_PAGES.items()}
    made |= reference_pages.pages(ROOT)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    pages = {one.src_uri: one.content_string for one in files.documentation_pages()}
    for target in sorted({one for page, text in pages.items() for one in outside(text, page)}):
        files.append(File.generated(config, f"source/{target}", content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links at where their files are in the site."""
    return linked(markdown, page.file.src_uri)
