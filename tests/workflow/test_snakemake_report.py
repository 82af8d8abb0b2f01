"""`snakemake --report`: every record of a run with its caption and category, made without a network."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, Checkout

# A download that is tried fails at once: nothing listens on port 9.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
CAPTIONS = ROOT / "rules" / "captions"


def made(smoke: Checkout, file: Path) -> Path:
    done = smoke.call(smoke.snakemake("--report", str(file)), **NO_NETWORK)
    assert done.returncode == 0, done.stdout
    return file


def test_one_page_holds_records_captions_and_categories(smoke: Checkout, tmp_path: Path) -> None:
    page = made(smoke, tmp_path / "report.html").read_text()
    for category in ("Report", "Verdicts", "Pairs", "Accuracy", "Machine"):
        assert f'"{category}"' in page
    # captions are templates: the pair, the processes and the rounds of this run are in them
    assert "Both sides of flash_sdp, timed in turns by 2 processes of 3 rounds" in page
    assert "<code" in page or "tt class" in page, "captions are RST, rendered"
    for record in ("pairs/flash_sdp/measure.json", "perplexity.json", "judgement.json", "reports/index.html"):
        assert record in page
    # what the page loads on being opened, it has within itself
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", page)


def test_a_zip_holds_the_same_as_files(smoke: Checkout, tmp_path: Path) -> None:
    with zipfile.ZipFile(made(smoke, tmp_path / "report.zip")) as made_zip:
        names = made_zip.namelist()
        assert "report/report.html" in names
        kept = {Path(name).name: made_zip.read(name) for name in names}
    assert kept["index.html"] == (smoke.folder / "reports" / "index.html").read_bytes()
    assert kept["perplexity.json"] == (smoke.results / "cpu" / "perplexity.json").read_bytes()


def test_every_caption_is_used_and_there() -> None:
    used = set(re.findall(r'caption="captions/(\w+)\.rst"', RULES)) | {"workflow"}
    assert used == {path.stem for path in CAPTIONS.glob("*.rst")}


@pytest.mark.parametrize("caption", sorted(CAPTIONS.glob("*.rst")), ids=lambda path: path.stem)
def test_a_caption_is_named_after_its_rule(caption: Path) -> None:
    assert caption.stem == "workflow" or re.search(rf"^rule {caption.stem}:$", RULES, re.M)
