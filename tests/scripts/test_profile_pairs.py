"""A kernel file as a program, and every pair's profile without the DAG, on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from serveproof import pairs
from serveproof.bench import kernel_numbers, profiling, profiling_kernel
from serveproof.errors import UserError
from serveproof.profile_records import ProfileRecord
from serveproof.results import MeasureCase, read

ROOT = Path(__file__).resolve().parents[2]


def run(file: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(file), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", sorted((ROOT / "kernels").glob("*.py")), ids=lambda file: file.stem)
def test_every_kernel_file_is_a_program_by_the_same_lines(file: Path) -> None:
    main = file.read_text().partition('if __name__ == "__main__":')[2]
    assert main.split() == [
        *("import", "runpy", 'runpy.run_module("serveproof.bench.profiling_kernel",', 'run_name="__main__")'),
    ]


def test_a_kernel_file_profiles_its_side(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    case = ("--case", "b16_max2048", "--cpu", "--out", str(out))
    done = run("kernels/optimized_paged_attention.py", "--profile", "minimal", *case)
    assert done.returncode == 0, done.stderr
    assert "would pay, ms" in done.stdout
    for told in ("throughput: ", "peak memory: ", "\npage faults: ", "major page faults: 0 faults"):
        assert told in done.stdout
    record = read(out, ProfileRecord)
    assert record.code_sha == pairs.code_sha("paged_attention")
    (found,) = record.cases
    assert (found.optimized.status, found.baseline.status) == ("passed", "skipped")
    assert found.optimized.hotspots
    assert (tmp_path / "profile_traces" / found.optimized.trace).stat().st_size == found.optimized.trace_bytes


def test_a_side_is_measured_against_the_other() -> None:
    """Pages against padding: fewer page faults and a higher throughput, on any CPU."""
    case = ("--case", "b16_max2048", "--cpu", "--processes", "2", "--iterations", "3")
    done = run("kernels/optimized_paged_attention.py", "--profile", "none", "--compare", *case)
    assert done.returncode == 0, done.stderr
    # the notes under the table begin with the same words
    rows = {line[:17].strip(): line for line in reversed(done.stdout.splitlines())}
    faults, throughput = (float(rows[name].split()[-1]) for name in ("page faults", "throughput"))
    assert faults < 0.6
    assert throughput > 1.2
    assert rows["major page faults"].split()[3:5] == ["0", "faults"]


def test_a_case_that_does_not_pass_has_its_reason_for_numbers() -> None:
    failed = MeasureCase("a", "cpu", {}, "error", "Traceback\nValueError: no")
    assert kernel_numbers.beside(failed) == "error: ValueError: no"


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        (
            "kernels/optimized_flash_sdp.py",
            ("--cpu", "--processes", "1"),
            "at least 2 of each, or there is no interval",
        ),
        ("kernels/optimized_flash_sdp.py", ("--cpu", "--case", "xyzzy"), "--case xyzzy: flash_sdp has no such case"),
        ("kernels/optimized_flash_sdp.py", ("--profile", "some"), "invalid choice: 'some'"),
    ],
)
def test_bad_arguments_are_one_line(file: str, arguments: tuple[str, ...], said: str) -> None:
    done = run(file, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_only_kernel_files_have_a_side(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a kernel file"):
        profiling_kernel.side_of(tmp_path / "optimized_flash_sdp.py")
    assert profiling_kernel.side_of(Path("/x/kernels/baseline_flash_sdp.py")) == ("baseline", "flash_sdp")


def test_the_program_part_is_not_in_a_pairs_hash(tmp_path: Path) -> None:
    for file in pairs.files("flash_sdp"):
        (tmp_path / "kernels").mkdir(exist_ok=True)
        (tmp_path / "kernels" / file.name).write_text(file.read_text().partition('\n\nif __name__ == "__main__"')[0])
    assert pairs.code_sha("flash_sdp", tmp_path) == pairs.code_sha("flash_sdp")
    with (tmp_path / "kernels" / "baseline_flash_sdp.py").open("a") as written:
        written.write("\nCHANGED = 1\n")
    assert pairs.code_sha("flash_sdp", tmp_path) != pairs.code_sha("flash_sdp")


def test_every_named_pair_is_written_and_deep_dive_says_what_it_lacks(
    load_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = ["--pairs", "fp8_kv_cache", "--cpu", "--profile", "deep_dive", "--nsys", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["profile_pairs", *asked])
    monkeypatch.setattr(profiling.shutil, "which", lambda _: None)
    load_script("profile_pairs").main()
    record = read(tmp_path / "fp8_kv_cache.json", ProfileRecord)
    assert all(case.baseline.hotspots and case.optimized.hotspots for case in record.cases)
    assert [note.partition(":")[0] for note in record.notes] == [
        "hardware counters are a GPU's",
        "Nsight Systems (nsys) is not installed",
    ]
    assert msgspec.json.decode((tmp_path / "fp8_kv_cache_raw.json").read_bytes()) == {}
    assert "deep_dive is minimal" in capfd.readouterr().out
