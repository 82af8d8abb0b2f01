"""The report's data against what it was when a person last looked at it; its bytes may change freely."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report import golden


def test_the_report_says_what_it_said(tmp_path: Path) -> None:
    kept = json.loads(golden.FILE.read_text(encoding="utf-8"))
    found = golden.facts(golden.page(tmp_path), tmp_path)
    assert found.keys() == kept.keys()
    for part, expected in kept.items():
        assert found[part] == expected, f"{part}; if this was meant: python -m tests.report.golden"
