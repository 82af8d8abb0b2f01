"""Render the HTML report.

Needs one or more results/{hardware} folders (hardware.json must be there; what else is missing is shown as absent) and
a JSON file with the provenance. Writes one self-contained HTML page that opens from disk and uses no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import results
from serveproof.errors import one_line_errors
from serveproof.report.data import collect
from serveproof.report.render import render


def main(arguments: list[str] | None = None) -> None:
    """Parse, collect, render, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="FOLDER", help="results/{hardware}, one or more"
    )
    parser.add_argument(
        "--provenance", type=Path, required=True, metavar="FILE", help="JSON of serveproof.results.Provenance"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/index.html"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    with one_line_errors():
        provenance = results.read(options.provenance, results.Provenance)
        page = render([collect(folder) for folder in options.results], provenance)
        results.write_atomically(options.out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
        print(options.out)


if __name__ == "__main__":
    main()
