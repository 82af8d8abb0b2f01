"""The whole site: reports/site/index.html, and a folder a run with its report, its records and its crate."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from markupsafe import Markup

from serveproof import provenance
from serveproof.publishing import crate, workflow_files
from serveproof.publishing.runs import Run
from serveproof.report import numbers, summary, words
from serveproof.report.data import collect_history
from serveproof.report.render import render, style, templates_of


def page(template: str, **values: Any) -> str:
    """A page in the report's style, without a script."""
    environment = templates_of("serveproof.publishing")
    environment.filters.update(badge=words.badge, moment=numbers.moment)
    return environment.get_template(template).render(style=Markup(style()), **values)  # noqa: S704 - our own file


def index(runs: list[Run]) -> str:
    """The page that lists the runs."""
    return page("index.html.j2", rows=[(run, summary.headline(run.machine).sentence) for run in runs])


def preview(run: Run, metadata: Path) -> str:
    """The page that lists a crate's files, as its metadata has them."""
    entities = json.loads(metadata.read_text(encoding="utf-8"))["@graph"]
    files = [one for one in entities if "sha256" in one]
    here = [one for one in files if not one["@id"].startswith("ni:")]
    return page("files.html.j2", run=run, here=here, elsewhere=[one for one in files if one not in here])


def write_run(run: Run, root: Path, folder: Path) -> None:
    """One run's folder: report, results/, workflow/, crate."""
    for path in run.files:
        (folder / "results" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.machine.folder / path, folder / "results" / path)
    said = workflow_files.write(root, run.newest, folder / "workflow")
    if len(run.commits) > 1:
        said += " Other records were made at earlier commits: each one's entry says its own."
    history = [collect_history(run.machine.folder)]
    report = render([run.machine], run.newest or provenance.collect(root), history)
    (folder / "index.html").write_text(report, encoding="utf-8")
    crate.write(run, folder, said)
    listed = preview(run, folder / "ro-crate-metadata.json")
    (folder / crate.PREVIEW).write_text(listed, encoding="utf-8")


def write(runs: list[Run], root: Path, out: Path) -> None:
    """Write the site beside `out`, then put it in the place of what was there: a killed run leaves the old one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        made = Path(temporary) / out.name
        made.mkdir()
        for run in runs:
            (made / run.name).mkdir()
            write_run(run, root, made / run.name)
        (made / "index.html").write_text(index(runs), encoding="utf-8")
        # GitHub Pages would leave out what Jekyll does not like
        (made / ".nojekyll").touch()
        if out.exists():
            out.rename(Path(temporary) / "before")
        made.rename(out)
