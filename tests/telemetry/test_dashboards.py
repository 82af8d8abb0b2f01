"""promtool on the rules and on every question that the dashboard asks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "dashboards/serving.json").read_text())


def promtool(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=ROOT / "dashboards", capture_output=True, text=True, check=False)


def questions() -> list[str]:
    texts = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [re.sub(r"\$(job|gpu)", ".*", text.replace("$__rate_interval", "1m")) for text in texts]


@pytest.mark.parametrize("command", [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml"),
                                     ("test", "rules", "rules_test.yml")])  # fmt: skip
def test_promtool_accepts(prometheus_programs: tuple[str, str], command: tuple[str, ...]) -> None:
    done = promtool(prometheus_programs[1], *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_never_fires_is_noticed(prometheus_programs: tuple[str, str], tmp_path: Path) -> None:
    rules = (ROOT / "dashboards/rules.yml").read_text()
    for changed in (rules.replace("> 0.95", "> 1.95"), rules.replace("% 128 >= 64", "% 128 >= 999")):
        assert changed != rules
        (tmp_path / "rules.yml").write_text(changed)
        (tmp_path / "rules_test.yml").write_text((ROOT / "dashboards/rules_test.yml").read_text())
        done = promtool(prometheus_programs[1], "test", "rules", str(tmp_path / "rules_test.yml"))
        assert done.returncode != 0, done.stdout


def test_the_dashboard_asks_what_prometheus_can_parse(prometheus_programs: tuple[str, str], tmp_path: Path) -> None:
    assert len(questions()) > 25
    rules = [{"record": f"asked:{number}", "expr": text} for number, text in enumerate(questions())]
    path = tmp_path / "asked.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    done = promtool(prometheus_programs[1], "check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(path.read_text().replace("histogram_quantile(", "histogram_quantile((", 1))
    assert promtool(prometheus_programs[1], "check", "rules", str(path)).returncode != 0


def test_the_dashboard_s_panels_lie_beside_each_other() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
