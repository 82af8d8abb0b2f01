"""Settings that resolve, and settings that can't; tests/workflow/test_bad_input.py meets the rest as a user does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serveproof import config
from serveproof.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings() -> dict[str, Any]:
    return config.read() | {"hardware": "cpu"}


def test_the_config_of_the_repository_resolves(settings: dict[str, Any]) -> None:
    resolved = config.resolve(settings, cores=3)
    assert (resolved.hardware, resolved.threads) == ("cpu", 3)
    assert {case["tier"] for cases in resolved.cases.values() for case in cases} == {"cpu"}


def test_a_gpu_gets_the_gpu_tiers_and_no_threads_of_the_cores(settings: dict[str, Any]) -> None:
    resolved = config.resolve(settings | {"hardware": "2x_h200", "threads": 4}, cores=1)
    assert {case["tier"] for case in resolved.cases["flash_sdp"]} == {"gpu", "reference"}
    assert resolved.threads == 4


def test_numbers_nested_on_the_command_line_are_numbers(settings: dict[str, Any]) -> None:
    changed = settings | {"measure": settings["measure"] | {"rounds": "7"}}
    changed |= {"accuracy_gate": {"max_increase_percent": "0.5"}}
    values = config.resolve(changed).values
    assert values["measure"]["rounds"] == 7
    assert values["accuracy_gate"]["max_increase_percent"] == 0.5


def test_home_is_resolved_in_paths(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.txt").write_text("word " * 2000)
    assert config.resolve(settings | {"text": "~/own.txt"}).values["text"] == str(tmp_path / "own.txt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threads": "some"}, "key 'threads' (all, or a whole number from 1 up)"),
        ({"tiers": ["gpus"]}, "key 'tiers' (auto, or a list of cpu, gpu, reference)"),
        ({"hardware": "1x_h200"}, "key 'hardware' (the hardware key, or auto to find it)"),
        ({"pairs": ["nothing_like_it"]}, "pair 'nothing_like_it' doesn't exist; kernels/ has: flash_sdp"),
        ({"model": 5}, "key 'model' (default or a path): 5 is not of type 'string'"),
    ],
)
def test_a_wrong_value_is_one_line(settings: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        config.resolve(settings | change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(settings: dict[str, Any]) -> None:
    del settings["text"]
    with pytest.raises(UserError, match="'text' is a required property"):
        config.resolve(settings)


def test_two_cases_of_one_name_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    (tmp_path / "config").mkdir()
    for schema in ("config.schema.yaml", "workloads.schema.yaml"):
        (tmp_path / "config" / schema).write_text((ROOT / "config" / schema).read_text())
    case = "{case: a, tolerance_eps: 1, axes: {seq: 1}}"
    (tmp_path / "config" / "workloads.yaml").write_text(f"flash_sdp: {{cpu: [{case}, {case}]}}\n")
    with pytest.raises(UserError, match="pair 'flash_sdp' has two cases of one name"):
        config.resolve(settings | {"pairs": ["flash_sdp"]}, tmp_path)
