"""Pages rendered once for all tests of the report, and the browser that opens them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serveproof import expectations
from serveproof.report.data import collect
from serveproof.report.machines import sourced_cases
from serveproof.report.render import render
from tests.report import fake_machine, fake_results
from tests.report.browser import CHROMEDRIVER, CHROMIUM, FLAGS, MISSING

ROOT = Path(__file__).parents[2]


def write_page(folder: Path, *machines: Path, text: str = "") -> Path:
    """The page of those results folders, with the public records of the B200 beside them."""
    public = sourced_cases([expectations.load(ROOT / "expectations_b200.json")])
    page = folder / "index.html"
    found = [collect(machine) for machine in machines]
    page.write_text(render(found, fake_results.provenance(text), public=public), encoding="utf-8")
    return page


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one machine with pairs and perplexity."""
    folder = tmp_path_factory.mktemp("report")
    return write_page(folder, fake_results.write_machine(folder / "results" / "cpu"))


@pytest.fixture(scope="session")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two machines, of which one has something for every topic."""
    folder = tmp_path_factory.mktemp("whole")
    everything = fake_machine.write_everything(folder / "results" / "h200", key="h200")
    return write_page(folder, everything, fake_results.write_machine(folder / "results" / "cpu"))


@pytest.fixture(scope="session")
def many_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 500 pairs."""
    folder = tmp_path_factory.mktemp("many")
    return write_page(folder, fake_machine.write_many(folder / "results" / "cpu", 500))


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that tries to become markup in every free field of every topic, on two machines."""
    folder = tmp_path_factory.mktemp("hostile")
    text = fake_results.HOSTILE
    machines = [fake_machine.write_everything(folder / "results" / key, text, key) for key in ("cpu", "h200")]
    return write_page(folder, *machines, text=text)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests of the report."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()
