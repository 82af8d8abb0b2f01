"""Pages rendered once for all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from serveproof.report.data import collect
from serveproof.report.render import render
from tests.report import fake_results


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one machine with something of every kind."""
    folder = tmp_path_factory.mktemp("report")
    machine = collect(fake_results.write_machine(folder / "results" / "cpu"))
    page = folder / "index.html"
    page.write_text(render([machine], fake_results.provenance()), encoding="utf-8")
    return page


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with text that tries to become markup in every free field, on two machines."""
    folder = tmp_path_factory.mktemp("hostile")
    text = fake_results.HOSTILE
    machines = [collect(fake_results.write_machine(folder / "results" / key, text, key)) for key in ("cpu", "h200")]
    page = folder / "index.html"
    page.write_text(render(machines, fake_results.provenance(text)), encoding="utf-8")
    return page
