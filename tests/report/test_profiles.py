"""Profiles in the page: what would pay first, both sides, hostile names, and a record that is broken."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from serveproof import results
from serveproof.errors import UserError
from serveproof.profile_records import MOST_HOTSPOTS, ProfileRecord
from serveproof.report.data import collect
from serveproof.results import MeasureRecord
from tests.report import fake_profiles, fake_results
from tests.report.test_render import Page, page_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_results.write_machine(tmp_path / "cpu")


def words(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_what_would_pay_most_is_the_first_row(folder: Path) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    text = page_of(folder)
    table = text[text.index('<table class="sortable">') :].partition("</table>")[0]
    assert table.index("kernels/x.py(3): loop") < table.index("gemm&lt;float&gt;") < table.index("aten::odd")
    page = Page(text)
    assert page.open == []
    for said in (
        "bound by launches: the device idles 60 % of a call",
        "kernels/x.py(9): run › kernels/x.py(3): item",
        "≤ 1 ms",
        "Nsight Systems (nsys) is not installed",
        "no permission to read the GPU's counters",
        "counted: a call's first 400 operations",
        "traces/c_baseline.json.gz",
    ):
        assert said in words(page), said


def test_each_chart_has_its_table_and_the_sides_stand_beside_each_other(folder: Path) -> None:
    before = Page(page_of(folder)).count("figure", **{"class": "chart"})
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    fake_profiles.write_decoder(folder)
    page = Page(page_of(folder))
    # the pair: an icicle, a roofline, memory; the decoder's two points: an icicle and a roofline each
    assert page.count("figure", **{"class": "chart"}) == before + 3 + 2 * 2
    assert page.count("details", **{"class": "data"}) == before + 7
    assert page.count("div", id="m0-decoder") == 1


def test_hostile_names_stay_text(folder: Path) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", f"causal{fake_results.HOSTILE}", fake_results.HOSTILE)
    fake_profiles.write_decoder(folder, fake_results.HOSTILE)
    text = page_of(folder)
    page = Page(text)
    assert page.open == []
    assert page.count("img") == 0
    assert page.count("script") == 1
    assert "window.stolen=1</script>" not in text


def test_a_profile_of_other_code_says_so(folder: Path) -> None:
    measured = results.read(folder / "pairs/flash_sdp/measure.json", MeasureRecord)
    fake_profiles.write_pair(folder, "flash_sdp", "causal", code_sha=measured.code_sha)
    assert "of other code" not in words(Page(page_of(folder)))
    fake_profiles.write_pair(folder, "flash_sdp", "causal", code_sha="another")
    assert "of other code" in words(Page(page_of(folder)))


def test_a_broken_record_is_left_out_with_its_reason(folder: Path) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    file = folder / "pairs/flash_sdp/profile.json"
    file.write_bytes(file.read_bytes()[:500])
    text = words(Page(page_of(folder)))
    assert "flash_sdp: profile" in text
    assert "not a whole ProfileRecord" in text
    assert "Where the time goes" not in text


def test_a_record_longer_than_its_bounds_is_refused(folder: Path) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    file = folder / "pairs/flash_sdp/profile.json"
    record = results.read(file, ProfileRecord)
    record.cases[0].baseline.hotspots *= MOST_HOTSPOTS
    results.write(file, record)
    with pytest.raises(UserError, match="not a whole ProfileRecord"):
        results.read(file, ProfileRecord)


def test_what_an_earlier_run_left_is_not_shown(folder: Path) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    fake_profiles.write_decoder(folder)
    (folder / "engine").mkdir(exist_ok=True)
    for name in ("engine/ladder.json", "ranks/old.json", "serving/first_come/old.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{")  # broken: were it read, it would be told
    mine = folder / "pairs/flash_sdp/profile.json"
    kept = collect(folder, records=[mine])
    assert [pair.name for pair in kept.pairs if pair.profile] == ["flash_sdp"]
    assert (kept.decoder, kept.ladders, kept.ranked, kept.serving) == (None, [], [], None)
    none = collect(folder, records=[])
    assert not any(pair.profile for pair in none.pairs)
    assert not [one for one in none.absent if "profile" in one.what or "Ladder" in one.what]


@pytest.mark.parametrize(("seconds", "told"), [(12.0, False), (25.0, True)])
def test_a_profile_that_took_longer_than_the_measurement_says_so(folder: Path, seconds: float, told: bool) -> None:
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    path = folder / "pairs/flash_sdp/profile.json"
    record = results.read(path, ProfileRecord)
    results.write(path, msgspec.structs.replace(record, mode="minimal", seconds=seconds))
    assert ("which should at most double it" in page_of(folder)) is told
