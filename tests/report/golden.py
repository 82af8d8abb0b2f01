"""What the page says, as data. `python -m tests.report.golden` writes golden.json anew: look at the diff first.

No drawing and no markup is in it, so that a change of looks leaves it alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from serveproof import expectations
from serveproof.report import render, topics
from serveproof.report.charts import Chart
from serveproof.report.data import collect
from serveproof.report.machines import sourced_cases
from serveproof.report.render import Page
from serveproof.report.views import MachineView
from tests.report import fake_machine, fake_results

FILE = Path(__file__).with_name("golden.json")
ROOT = Path(__file__).parents[2]
ROWS_KEPT = 3


def page(folder: Path) -> Page:
    """Two machines: one with everything, and one that was stopped early."""
    whole = fake_machine.write_everything(folder / "h200", key="h200")
    early = fake_results.write_machine(folder / "cpu")
    for name in ("perplexity.json", "pairs/flash_sdp/measure.json"):
        (early / name).unlink()
    public = sourced_cases([expectations.load(ROOT / "expectations_b200.json")])
    return render.page([collect(whole), collect(early)], fake_results.provenance(), public=public)


def facts(shown: Page, folder: Path) -> dict[str, Any]:
    """The page's figures and words. folder: where the results lay, which is nobody's business."""
    found = {
        "answers": [view.headline.sentence for view in shown.machines],
        "general statistics": [
            [row.machine, row.pair, row.tone, *(cell.text for cell in row.cells)] for row in shown.stats
        ],
        "beside each other": [
            [row.pair, row.case, *(" ".join((cell.value or cell.words, cell.interval)).strip() for cell in row.cells)]
            for row in shown.beside.rows
        ],
        "public records alone": [one.pair for one in shown.beside.alone],
        "nothing, because": {
            f"{view.machine.hardware.key} {topic.id}": topic.reason(view)
            for view in shown.machines
            for topic in topics.TOPICS
            if topic.reason(view)
        },
        "charts": {view.machine.hardware.key: [_chart(one) for one in _charts(view)] for view in shown.machines},
    }  # fmt: skip
    text = json.dumps(found, indent=1, ensure_ascii=False).replace(f"{folder}/", "")
    plain: dict[str, Any] = json.loads(text)
    return plain


def _charts(view: MachineView) -> list[Chart]:
    pairs = [one for pair in view.pairs for one in (*pair.samples.values(), pair.roofline, pair.memory)]
    serving = view.serving
    scenarios = serving.scenarios if serving else []
    served = [one for part in scenarios for one in (*part.charts, *part.timelines)]
    served += serving.sweep_charts if serving else []
    ranks = [one for part in view.ranks for one in (*part.charts, *part.experts)]
    ladders = [part.chart for part in view.ladders]
    every = [view.speedups, *pairs, *ladders, *served, *view.accuracy, *ranks, *view.telemetry]
    return [one for one in every if one is not None]


def _chart(one: Chart) -> dict[str, Any]:
    rows = one.rows[:ROWS_KEPT] if len(one.rows) > 12 else one.rows
    short = [[cell[:60] for cell in row] for row in rows]
    return {"title": one.title, "says": one.alt_text, "columns": one.headings, "rows": len(one.rows), "first": short}


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        FILE.write_text(json.dumps(facts(page(folder), folder), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
