"""Rule report: renders one self-contained HTML page that opens from disk and asks the network for nothing.

Needs one or more results/{hardware} folders: hardware.json must be there, what else is missing is shown as absent, and
a broken file is an error that names it. Writes the page, whole or not at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import expectations, provenance, results, script
from serveproof.report.data import collect, collect_history
from serveproof.report.machines import sourced_cases
from serveproof.report.render import render

ROOT = Path(__file__).resolve().parents[1]


def work(arguments: argparse.Namespace) -> None:
    """Collect, render, write."""
    machines = [collect(folder, arguments.pairs, arguments.records) for folder in arguments.results]
    if arguments.provenance:
        origin = results.read(arguments.provenance, results.Provenance)
    else:
        origin = provenance.collect(ROOT)
    public = sourced_cases([expectations.load(path) for path in arguments.public])
    history = [collect_history(folder) for folder in arguments.results]
    page = render(machines, origin, history, public)
    results.write_atomically(arguments.out, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def main() -> None:
    """Parse the command line and do the work."""
    parser = script.parser(__doc__ or "")
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="results/{hardware}, one or more")
    parser.add_argument("--pairs", nargs="+", help="the pairs to show; all that the folders hold by default")
    parser.add_argument(
        "--public", type=Path, nargs="*", default=[ROOT / "expectations_b200.json"],
        help="expectations of which the public records stand beside cases of the same shapes, marked as not measured",
    )  # fmt: skip
    parser.add_argument(
        "--records", type=Path, nargs="*", help="profiles, ladder, ranks and load tests of this run; by default all"
    )
    parser.add_argument("--provenance", type=Path, help="JSON of results.Provenance; without it, of this checkout, now")
    parser.add_argument("--out", type=Path, default=Path("reports/index.html"), help="the page to write")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
