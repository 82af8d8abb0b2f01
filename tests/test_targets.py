"""What a target names, and which snakemake command measures it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveproof import pairs, targets
from serveproof.errors import UserError
from serveproof.hardware.key import Gpu

NAMES = pairs.names()


def test_a_chapter_stands_for_all_and_a_pair_needs_none() -> None:
    assert targets.parse(["ch16"]) == NAMES
    assert targets.parse(["ch16:flash_sdp"]) == targets.parse(["flash_sdp"]) == ["flash_sdp"]


@given(st.lists(st.sampled_from(NAMES), min_size=1), st.booleans(), st.booleans())
def test_however_targets_are_written_each_counts_once(names: list[str], chapter: bool, commas: bool) -> None:
    words = [f"ch16:{name}" if chapter else name for name in names]
    assert targets.parse([",".join(words)] if commas else words) == sorted(set(names))


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        (["ch16:flash_spd"], "did you mean 'ch16:flash_sdp'?"),
        (["ch15:flash_sdp"], "chapter 'ch15' doesn't exist; there is ch16"),
        (["zzz"], "there are: ch16, flash_sdp"),
        ([" , "], "no target is named"),
        ([], "no target is named"),
    ],
)
def test_a_wrong_target_is_one_line(given_: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        targets.parse(given_)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_unsaid_is_left_to_the_config() -> None:
    _, *plain = targets.command(targets.Request(["a", "b"]))
    assert plain == ["-m", "snakemake", "bench", "--cores", "all", "--config", "pairs=[a,b]"]
    full = targets.command(targets.Request(["a"], "deep_dive", 7, Path("my.yaml")), "--dry-run")
    assert full[6:] == [
        *("--dry-run", "--configfile", "my.yaml", "--config"),
        *("pairs=[a]", "profile={mode: deep_dive}", "measure={rounds: 7}"),
    ]


def test_one_round_has_no_interval() -> None:
    with pytest.raises(UserError, match="--iterations 1: at least 2 rounds"):
        targets.command(targets.Request(["a"], iterations=1))


def test_a_single_gpu_is_the_first_visible_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(
        targets, "visible_gpus", lambda: [Gpu(1, "GPU-b", "NVIDIA H200"), Gpu(0, "GPU-a", "NVIDIA H200")]
    )
    targets.one_gpu()
    assert targets.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_on_a_cpu_a_single_gpu_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(targets, "visible_gpus", list)
    targets.one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in targets.os.environ


def test_the_keys_are_the_configs(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("hardware: 2x_h200\n")
    assert targets.keys(file) == ["2x_h200"]


def test_the_dags_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command[1:])
        (tmp_path / "results").mkdir()
        (tmp_path / "results/one.json").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(targets.subprocess, "run", run)
    for _ in range(2):
        assert targets.made("results/one.json", tmp_path) == tmp_path / "results/one.json"
    assert started == [["-m", "snakemake", "results/one.json", "--cores", "all"]]


def test_a_file_that_can_not_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(UserError, match="could not be made"):
        targets.made("results/one.json", tmp_path)
