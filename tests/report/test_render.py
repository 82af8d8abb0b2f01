"""The page as text: it parses, each chart has its table, nothing is loaded, hostile text stays text, gaps are shown."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serveproof import results
from serveproof.errors import UserError
from serveproof.report.data import collect
from serveproof.report.drawing import KEPT
from serveproof.report.render import render
from tests.report import fake_results

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Counts elements, keeps attributes and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes something else"

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] in {"script", "style"} else self.text).append(data)

    def count(self, tag: str, **wanted: str) -> int:
        return sum(1 for name, found in self.elements if name == tag and wanted.items() <= found.items())


def page_of(*folders: Path, text: str = "") -> str:
    return render([collect(folder) for folder in folders], fake_results.provenance(text))


def test_parses_and_every_chart_has_its_table(report_page: Path) -> None:
    page = Page(report_page.read_text(encoding="utf-8"))
    assert page.open == []
    charts = page.count("figure", **{"class": "chart"})
    assert charts == 1 + 5 + 2 + 2 + 4  # speedups, samples a case, roofline and memory a pair, accuracy
    assert page.count("svg", **{"class": "wide"}) == page.count("svg", **{"class": "narrow"}) == charts
    assert page.count("details", **{"class": "data"}) == charts
    assert page.count("figcaption") == charts
    assert all(found.get("aria-label") for tag, found in page.elements if found.get("role") == "img")
    titles = [found for tag, found in page.elements if tag == "title"]
    assert len(titles) > charts, "marks say their figures"
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    anchors = [found["href"] for tag, found in page.elements if tag == "a"]
    assert {str(anchor).removeprefix("#") for anchor in anchors} <= set(ids)


def test_loads_nothing_and_is_small(report_page: Path) -> None:
    text = report_page.read_text(encoding="utf-8")
    page = Page(text)
    loaded = [found.get(name) for _, found in page.elements for name in ("src", "href", "action", "data")]
    assert [one for one in loaded if one and not one.startswith("#")] == []
    assert "@import" not in text.split("</style>")[0]
    assert "url(" not in text.split("</style>")[0]
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text.split("</head>")[0]
    assert len(text.encode()) < 3_000_000


def test_one_small_script_and_no_drawing_library(report_page: Path) -> None:
    page = Page(report_page.read_text(encoding="utf-8"))
    assert page.count("script") == 1
    assert sum(len(script) for script in page.scripts) < 60_000, "style and script together"


def test_hostile_text_stays_text(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.count("img") == 0
    assert page.count("script") == 1
    assert "window.stolen=1</script>" not in text
    assert "49" not in "".join(page.text).split("{{7*7}}")[0][-3:]
    drawn = [one for one in text.split("<svg ")[1:] if "window.stolen" in one.partition("</svg>")[0]]
    assert len(drawn) > 10, "hostile names are in drawings too"
    allowed = {"class", "width", "height", "viewBox", *KEPT}
    inside = [found for tag, found in page.elements if tag in {"svg", "g", "path", "line", "rect", "text", "tspan"}]
    assert {name for found in inside for name in found} <= {name.lower() for name in allowed}


def test_shows_verdicts_failures_and_reasons(report_page: Path) -> None:
    text = re.sub(r"\s+", " ", " ".join(Page(report_page.read_text(encoding="utf-8")).text))
    assert "Command of this measurement" in text
    assert "2 of 5 optimizations pay here; 1 regressed; 2 failed; 1 skipped." in text
    for words in (
        "too good to believe",
        "inconclusive",
        "no expectation",
        "expired",
        "within the gate",
    ):
        assert words in text
    assert "RuntimeError: <b>operator</b> not capturable & unknown" in text
    assert "4 of 5 judged precisions are within the gate" in text
    assert "4-bit already" in text


def test_failed_case_carries_no_time(report_page: Path) -> None:
    text = report_page.read_text(encoding="utf-8").replace("<wbr>", "")
    for start in ('<table class="verdicts cards">', '<table class="stats'):
        table = text[text.index(start) :].partition("</table>")[0]
        row = table[table.index("regional_compilation") :].split("</tr>")[0]
        assert not re.search(r"\d\s*(ms|µs|×)", row)
        assert "failed" in row


def test_no_pairs_and_no_perplexity(tmp_path: Path) -> None:
    results.write(tmp_path / "hardware.json", fake_results.hardware())
    page = Page(page_of(tmp_path))
    text = " ".join(page.text)
    assert "No optimization was measured here." in text
    assert "perplexity.json was not made" in text
    assert "No engine/ladder*.json" in text
    for reason in ("No load test", "No ranks/*.json", "Nothing was profiled", "No run before this one"):
        assert reason in text, reason
    assert page.count("figure") == 0


def test_pair_without_its_measurement(tmp_path: Path) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    (folder / "pairs/flash_sdp/measure.json").unlink()
    (folder / "pairs/paged_attention/samples.parquet").unlink()
    (folder / "perplexity.parquet").unlink()
    text = " ".join(Page(page_of(folder)).text)
    assert "1 not finished" in text
    assert "flash_sdp: measurement" in text
    assert "paged_attention: samples" in text


@pytest.mark.parametrize("name", ["hardware.json", "perplexity.json", "pairs/flash_sdp/samples.parquet"])
def test_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=re.escape(str(folder / name))):
        collect(folder)


def test_many_samples_stay_small(tmp_path: Path) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    rows = [row for seed in range(20) for row in fake_results.samples("full", 16.0, 12.0, seed)]
    case = fake_results.passed("full", 16.0, 12.0, {}, False, "")
    fake_results.write_pair(folder, "flash_sdp", [case], rows)
    text = page_of(folder)
    assert "572 of 8000 samples, evenly" in text
    assert len(text) < 1_500_000


def test_script_writes_the_page_and_names_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_results.write_machine(tmp_path / "cpu")
    results.write(tmp_path / "provenance.json", fake_results.provenance())
    out = tmp_path / "reports" / "index.html"
    main = runpy.run_path(str(ROOT / "scripts" / "report.py"))["main"]
    arguments = ["--results", str(folder), "--provenance", str(tmp_path / "provenance.json"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    main()
    written = out.read_bytes()
    (folder / "judgement.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        main()
    complaint = capsys.readouterr().err
    assert len(complaint.splitlines()) == 1
    assert "judgement.json" in complaint
    assert out.read_bytes() == written


def test_script_tells_what_it_does() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True)
    for word in ("Needs", "Writes", "--results", "--provenance", "--out"):
        assert word in done.stdout
