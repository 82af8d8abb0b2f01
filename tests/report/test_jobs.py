"""What jobs used."""

from __future__ import annotations

from pathlib import Path

from serveproof import results
from serveproof.cluster.usage import SUFFIX, JobUsage
from serveproof.report.data import collect
from serveproof.report.jobs import job_rows, placed
from serveproof.report.render import render
from serveproof.results import Placement
from tests.report import fake_results

GIVEN = Placement("17", "n1", "gpu<b>", 8, 2, 4_000_000_000, 10, "gpu")


def test_shares_are_of_what_was_given() -> None:
    given, local = job_rows(
        [
            JobUsage("measure_flash_sdp", "measure_pair", 60.0, 120.0, 1_000_000_000, GIVEN),
            JobUsage("judge", "judge", 0.5, 0.25, 1_000_000),
        ]
    )
    assert (given.cpus, given.cpu_share) == ("2.0 of 8", "25 %")
    assert (given.memory, given.memory_share) == ("1\xa0GB of 4\xa0GB", "25 %")
    assert (given.time_share, given.gpus, given.alone) == ("10 %", "2", "its GPUs")
    assert (local.where, local.cpus, local.cpu_share, local.memory_share) == ("not through SLURM", "0.5", "–", "–")


def test_the_page_shows_jobs(tmp_path: Path) -> None:
    machines = []
    for key in ("cpu", "h200"):
        folder = fake_results.write_machine(tmp_path / key, key=key)
        used = JobUsage("measure_flash_sdp", "measure_pair", 60.0, 120.0, 1_000_000_000, GIVEN)
        results.write(folder / "logs" / f"measure_flash_sdp{SUFFIX}", used)
        machines.append(collect(folder))
    page = render(machines, fake_results.provenance())
    assert "What the jobs used" in page
    assert "gpu&lt;b&gt;, n1, job 17" in page
    assert "gpu<b>" not in page


def test_where_a_record_was_made() -> None:
    assert "node n1, 8 CPUs, 2 GPUs; to itself: its GPUs" in placed(GIVEN)
    assert "not through SLURM" in placed(None)
