"""Rule history: notes this run in results/history/{hardware}/, and says where a figure's level stepped.

Needs a results/{hardware} folder with measured pairs. Writes one Parquet file a run (date, commit, code hash; the same
results give the same file) and history.HistoryRecord: the run's name, how many there are, the steps found among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from serveproof import history, script, steps
from serveproof.results import Record, write


class HistoryRecord(Record):
    """results/{hardware}/history.json. tested: figures with enough runs for a step; alarm_rate: of any false one."""

    run: str
    figures: int
    runs: int
    tested: int
    alarm_rate: float
    steps: list[steps.Step]


def work(arguments: argparse.Namespace) -> None:
    path = history.note(arguments.results, arguments.pairs)
    runs = history.load(path.parent)
    found, tested = steps.of_history(runs)
    for step in found:
        word = "better" if step.better else "worse"
        script.say(
            arguments.log,
            f"{step.subject} {step.metric}: {step.change_percent:+.1f} % ({word}) from {step.commit[:12]} on, "
            f"{step.date_utc}: {'; '.join(step.causes)}",
        )
    figures, count = history.read_run(path).height, runs["run"].n_unique()
    write(arguments.out, HistoryRecord(path.stem, figures, count, tested, steps.ALARM_RATE, found))


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--results", type=Path, required=True, help="the results/{hardware} folder of this run")
    parser.add_argument("--pairs", nargs="+", help="the pairs of this run; all that the folder holds by default")
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
