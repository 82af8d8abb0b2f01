"""Every script's --help says what it does, what it needs and what it writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_does_needs_and_writes(
    name: str,
    load_script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        load_script(name).main()
    assert ended.value.code == 0
    words = capsys.readouterr().out.partition("\n\n")[2].partition("\noptions:\n")[0]
    does = re.split(r"(?<=[.])\s", words, maxsplit=1)[0]
    assert len(does.split()) > 4, f"scripts/{name}.py: --help doesn't begin with what the script does"
    assert re.search(r"\bNeeds\b", words), f"scripts/{name}.py: --help doesn't say what the script needs"
    assert re.search(r"\bWrites\b", words), f"scripts/{name}.py: --help doesn't say what the script writes"
