"""`make publish`: writes a site that any static host can serve: an index of runs, each one's report, records and
RO-Crate.

Needs one or more folders of results (results/{hardware}, or of reports/published). Writes reports/site/, whole or not
at all; asks the network for nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import script
from serveproof.errors import UserError
from serveproof.publishing import runs, site

ROOT = Path(__file__).resolve().parents[1]


def work(arguments: argparse.Namespace) -> None:
    """Read the runs, write the site."""
    folders = arguments.results or sorted(path.parent for path in Path("results").glob("*/hardware.json"))
    if not folders:
        raise UserError("results/: nothing measured here yet; run `make report`, or `make publish PUBLISHED=h200`")
    site.write(runs.read_all(folders), ROOT, arguments.out)
    script.say(arguments.log, f"site: {arguments.out / 'index.html'}")


def main() -> None:
    """Parse the command line and do the work."""
    parser = script.parser(__doc__ or "")
    parser.add_argument(
        "--results", type=Path, nargs="+", help="folders of results; every results/{hardware} by default"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/site"), help="the folder to write, or to replace")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
