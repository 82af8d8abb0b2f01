"""A results folder in which every topic of the report has something, and one with very many pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

from serveproof import results
from serveproof.cluster.usage import SUFFIX, JobUsage
from serveproof.results import Placement
from serveproof.serving_results import LadderRecord
from tests.report import fake_profiles, fake_ranks, fake_results

PUBLISHED = Path(__file__).parents[2] / "reports/published/h200"
GIVEN = Placement("17", "n1", "gpu", 8, 2, 4_000_000_000, 10, "gpu")


def write_everything(folder: Path, text: str = "", key: str = "cpu") -> Path:
    """What fake_results.write_machine writes, with profiles, ranks, jobs, and the published engine and load tests."""
    fake_results.write_machine(folder, text, key)
    fake_profiles.write_pair(folder, "flash_sdp", f"causal{text}", text)
    fake_profiles.write_decoder(folder, text)
    results.write(folder / "ranks" / "multi_gpu_validation.json", fake_ranks.record(text))
    moe = [fake_results.passed("zipf", 3.1, 0.42, {"experts": 16, "traffic": "zipf"}, False, text)]
    fake_results.write_pair(folder, "moe_grouped_gemm", moe, fake_results.samples("zipf", 3.1, 0.42, 5), text)
    used = JobUsage("measure_flash_sdp", "measure_pair", 60.0, 120.0, 1_000_000_000, GIVEN)
    results.write(folder / "logs" / f"measure_flash_sdp{SUFFIX}", used)
    for name in ("engine", "serving"):
        shutil.copytree(PUBLISHED / name, folder / name)
    ladder = results.read(folder / "engine/ladder_1b.json", LadderRecord)
    for place, rung in enumerate(ladder.rungs):
        rung.perplexity, rung.perplexity_change_percent = 19.2 + 0.02 * place, 0.1 * place
    results.write(folder / "engine/ladder_1b.json", ladder)
    return folder


def write_many(folder: Path, pairs: int) -> Path:
    """So many pairs of one case each; every seventh is slower than its baseline, every eleventh was skipped."""
    results.write(folder / "hardware.json", fake_results.hardware())
    for number in range(pairs):
        speedup = 0.9 if number % 7 == 0 else 1.1 + number / 100
        case = fake_results.passed("one", 10.0 * speedup, 10.0, {"size": number}, False, "")
        if number % 11 == 0:
            case = fake_results.broken("one", "skipped", "needs a CUDA device")
        rows = fake_results.samples("one", 10.0 * speedup, 10.0, number)
        fake_results.write_pair(folder, f"pair_{number:03d}", [case], rows)
    return folder
