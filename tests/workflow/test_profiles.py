"""Profiles in the DAG: made after the measurement, in the report, and made again by what they depend on alone."""

from __future__ import annotations

from serveproof.profile_records import ProfileRecord
from serveproof.results import read
from tests.workflow.conftest import Checkout, error_line

ASKED = {"pairs": "[flash_sdp]", "profile": "{mode: minimal}"}


def test_a_profile_is_made_and_shown_and_no_time_is_taken_again(checkout: Checkout) -> None:
    # the other pairs are not part of this run
    assert checkout.planned(**ASKED) == sorted(["profile_pair flash_sdp", "judge", "history", "report", "all"])
    done = checkout.run("--cores", "all", **ASKED)
    assert done.returncode == 0, done.stdout
    folder = checkout.results / "cpu" / "pairs" / "flash_sdp"
    record = read(folder / "profile.json", ProfileRecord)
    assert record.mode == "minimal"
    assert record.measure_seconds
    for case in record.cases:
        for side in (case.baseline, case.optimized):
            assert side.status == "passed", side.reason
            assert (folder / "traces" / side.trace).stat().st_size == side.trace_bytes
    page = checkout.folder / "reports" / "index.html"
    assert "Where the time goes" in page.read_text()
    assert checkout.planned(**ASKED) == []
    # a run that asks for none shows none, though the record is still there
    assert checkout.run("--cores", "all", pairs=ASKED["pairs"]).returncode == 0
    assert "Where the time goes" not in page.read_text()
    assert checkout.planned(**ASKED) == ["all", "report"]
    checkout.append("serveproof/bench/profiling_hotspots.py", "\n# changed\n")
    assert checkout.planned(**ASKED) == ["all", "profile_pair flash_sdp", "report"]


def test_a_mode_that_is_none_is_one_line(smoke: Checkout) -> None:
    assert "profile.mode" in error_line(smoke.run("--dry-run", profile="{mode: deepdive}"))
