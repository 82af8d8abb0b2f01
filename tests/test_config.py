"""Settings: every fault is one line that names the key and the mend; autos follow the hardware."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from serveproof import config
from serveproof.errors import UserError
from serveproof.pairs import ROOT

GOOD = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = made
    for parent in parents:
        place = place[parent]
    place[last] = value
    return made


def tiers(found: config.Settings, key: str) -> set[str]:
    return {case["tier"] for cases in found.cases[key].values() for case in cases}


def test_the_shipped_settings_are_good() -> None:
    found = config.resolve(GOOD | {"hardware": "cpu"}, cores=3)
    assert (found.machines["cpu"].cpus, found.machines["cpu"].pair_cpus) == (3, 3)
    assert tiers(found, "cpu") == {"cpu"}
    assert found.tokens == {"cpu": config.AUTO_TOKENS["cpu"]}


def test_autos_follow_the_hardware_named() -> None:
    found = config.resolve(GOOD | {"hardware": "2x_h200"}, cores=8)
    assert tiers(found, "2x_h200") == {"gpu", "reference"}
    assert found.tokens == {"2x_h200": config.AUTO_TOKENS["cuda"]}
    assert (found.serving["2x_h200"]["slo"], found.serving["2x_h200"]["duration_s"]) == ("server", 30)
    machine = found.machines["2x_h200"]
    assert (machine.cpus, machine.pair_cpus, machine.gpu_request) == (8, 4, ("", 2))


def test_several_kinds_of_machine_each_have_their_own(tmp_path: Path) -> None:
    wanted = {
        "cpu_epyc": {"partition": "long", "cpus": 64, "account": "0815"},
        "h200": {"partition": "gpu", "cpus": "16", "gpu": 1, "gpu_model": "h200", "exclusive": "node"},
        "2x_b200": {"partition": "gpu", "cpus": 32, "gres": "gpu:b200:2"},
        "2x_h100": {"partition": "gpu", "cpus": 32, "gres": "gpu:2"},
    }
    found = config.resolve(GOOD | {"hardware": wanted})
    assert list(found.machines) == ["cpu_epyc", "h200", "2x_b200", "2x_h100"]
    assert [one.gpu_request for one in found.machines.values()] == [("", 0), ("h200", 1), ("b200", 2), ("", 2)]
    assert [one.alone for one in found.machines.values()] == ["node", "node", "gpu", "gpu"]
    assert [one.cpus for one in found.machines.values()] == [64, 16, 32, 32]
    assert found.machines["cpu_epyc"].account == "0815"
    assert tiers(found, "cpu_epyc") == {"cpu"}
    assert tiers(found, "2x_b200") == {"gpu", "reference"}
    assert found.tokens["h200"] != found.tokens["cpu_epyc"]


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({}, "key 'hardware'"),
        ({"cpu": {"cpus": 2}}, "'partition' is a required property"),
        ({"cpu": {"partition": "a", "cpu": 2}}, r"unknown key 'hardware.cpu.cpu'; did you mean 'cpus'\?"),
        ({"cpu": {"partition": "a", "cpus": 2, "gpu": 1}}, "'hardware.cpu.gpu': a machine 'cpu' is a CPU"),
        ({"cpu": {"partition": "a", "cpus": 2, "exclusive": "gpu"}}, "'cpu' has no GPU to have alone"),
        ({"h200": {"partition": "a", "cpus": 2}}, "asks for GPUs by `gpu: 1` or by `gres: gpu:1`, and neither"),
        ({"h200": {"partition": "a", "cpus": 2, "gpu": 1, "gres": "gpu:1"}}, "both are given"),
        ({"h200": {"partition": "a", "cpus": 2, "gres": "gpu:1", "gpu_model": "x"}}, "with `gres` write the model"),
        (
            {"2x_h200": {"partition": "a", "cpus": 2, "gres": "gpu"}},
            "asks for 1 GPUs and the key '2x_h200' stands",
        ),
        ({"h200": {"partition": "a", "cpus": 2, "gres": "mps:1"}}, "hardware.h200.gres"),
        ({"auto": {"partition": "a", "cpus": 2}}, "'auto' does not match"),
    ],
)
def test_a_bad_machine_is_one_line(machines: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.resolve(GOOD | {"hardware": machines})
    assert str(caught.value).startswith("config/config.yaml")


def test_a_server_has_no_more_ranks_than_its_key_has_gpus() -> None:
    two = {"serving": GOOD["serving"] | {"tensor_parallel": 2}}
    assert config.resolve(GOOD | two | {"hardware": "2x_h200"}).serving["2x_h200"]["tensor_parallel"] == 2
    assert config.resolve(GOOD | two | {"hardware": "cpu"}).serving["cpu"]["tensor_parallel"] == 2
    with pytest.raises(UserError, match="2 ranks want a GPU each, hardware h200 is 1"):
        config.resolve(GOOD | two | {"hardware": "h200"})
    off = {"serving": two["serving"] | {"mode": "none"}}
    assert config.resolve(GOOD | off | {"hardware": "h200"}).serving["h200"]["mode"] == "none"


def test_a_serving_setting_that_is_given_stays() -> None:
    given = GOOD | {"hardware": "cpu", "serving": GOOD["serving"] | {"duration_s": 3}}
    found = config.resolve(given).serving["cpu"]
    assert (found["duration_s"], found["long_tokens"]) == (3, config.AUTO_SERVING["cpu"]["long_tokens"])
    assert "auto" not in found.values()


def test_smoke_overrides_only_known_keys() -> None:
    smoke = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    merged = {key: {**value, **smoke[key]} if key in smoke else value for key, value in GOOD.items()}
    assert set(smoke) <= set(GOOD)
    config.resolve(merged)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("paris", "all", r"unknown key 'paris'; did you mean 'pairs'\?"),
        ("measure.procesess", 3, r"unknown key 'measure.procesess'; did you mean 'processes'\?"),
        ("measure.xyzzy", 3, "unknown key 'measure.xyzzy'; there are: processes, rounds"),
        ("measure.rounds", "ten", r"key 'measure.rounds' \(A B B A rounds a process\): 'ten' is not of type 'integer'"),
        ("measure.processes", 1, "measure.processes"),
        ("pairs", ["flash_sd"], r"pair 'flash_sd' doesn't exist; did you mean 'flash_sdp'\?"),
        ("pairs", ["nothing_like_it"], "doesn't exist; kernels/ has: flash_sdp, flashinfer_block_sparse"),
        ("model", "/no/such/model", "key 'model': /no/such/model doesn't exist; give a path or `default`"),
        ("text", "~/no-such-text.txt", "key 'text': ~/no-such-text.txt doesn't exist"),
        ("perplexity.stride_tokens", 4096, "key 'perplexity.stride_tokens': must be less"),
        ("perplexity.precisions", ["fp4"], "perplexity.precisions.0"),
        ("hardware", "H 200", "key 'hardware'"),
        ("threads", 0, r"key 'threads' \(all, or a whole number from 1 up\)"),
        ("distributed.nodes", 0, r"key 'distributed.nodes' \(nodes of a job\): 0 is less than the minimum of 1"),
        ("validation.nodes", 3, r"key 'validation.nodes' \(nodes of a job; .*\): 3 is not one of \[1, 2, 4\]"),
        ("tiers", ["gpus"], r"key 'tiers' \(auto, or a list of cpu, gpu, reference\)"),
    ],
)
def test_a_bad_key_is_one_line(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.resolve(changed(key, value))
    assert str(caught.value).startswith("config/config.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "switch"), [("distributed", "model"), ("validation", "ranks")])
def test_several_nodes_are_a_cluster_s(name: str, switch: str) -> None:
    config.one_node(GOOD)
    several = GOOD | {name: {switch: "auto", "nodes": 2}}
    with pytest.raises(UserError) as caught:
        config.one_node(several)
    told = f"key '{name}.nodes': 2 nodes are a SLURM job; set 1, or run with --profile profiles/slurm"
    assert str(caught.value) == f"config/config.yaml: {told}"
    config.one_node(several | {name: {switch: "none", "nodes": 2}})


def test_no_cores() -> None:
    with pytest.raises(UserError, match=r"--cores 0: .*--cores all"):
        config.resolve(GOOD, cores=0)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("words " * 2000)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.resolve(changed("text", "~/t.txt")).values["text"] == str(tmp_path / "t.txt")


def test_workloads_are_held_to_their_schema(tmp_path: Path) -> None:
    for name in ("config", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name) if name == "kernels" else (tmp_path / name).mkdir()
    for path in (ROOT / "config").glob("*.yaml"):
        (tmp_path / "config" / path.name).write_text(path.read_text())
    workloads = tmp_path / "config/workloads.yaml"
    workloads.write_text(workloads.read_text().replace("tolerance_eps: 32", "tolerance: 32", 1))
    with pytest.raises(UserError, match=r"workloads.yaml: unknown key 'flash_sdp.cpu.0.tolerance'; did you mean"):
        config.resolve(GOOD, tmp_path)
    workloads.write_text("flash_sdp: {cpu: [")
    with pytest.raises(UserError, match=r"workloads.yaml: not YAML"):
        config.resolve(GOOD, tmp_path)
    workloads.write_text("paged_attention: {}\n")
    with pytest.raises(UserError, match="no entry for pair 'flash_sdp'"):
        config.resolve(GOOD, tmp_path)


def test_numbers_nested_on_the_command_line_are_numbers() -> None:
    changed = GOOD | {"measure": GOOD["measure"] | {"rounds": "7"}}
    changed |= {"accuracy_gate": {"max_increase_percent": "0.5"}}
    values = config.resolve(changed).values
    assert values["measure"]["rounds"] == 7
    assert values["accuracy_gate"]["max_increase_percent"] == 0.5


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="'text' is a required property"):
        config.resolve({key: value for key, value in GOOD.items() if key != "text"})


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    (tmp_path / "config").mkdir()
    for schema in ("config.schema.yaml", "workloads.schema.yaml"):
        (tmp_path / "config" / schema).write_text((ROOT / "config" / schema).read_text())
    case = "{case: a, tolerance_eps: 1, axes: {seq: 1}}"
    (tmp_path / "config" / "workloads.yaml").write_text(f"flash_sdp: {{cpu: [{case}, {case}]}}\n")
    with pytest.raises(UserError, match="pair 'flash_sdp' has two cases of one name"):
        config.resolve(GOOD | {"pairs": ["flash_sdp"]}, tmp_path)
