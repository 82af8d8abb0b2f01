"""Bad input: one line that names the key or file and the mend, a non-zero exit code, and no result lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from tests.workflow.conftest import Checkout, error_line, modified, write_text

# setting, its value, what the line says. All are seen before anything runs.
SETTINGS = {
    "unknown key": ("colour", "blue", "config/config.yaml: unknown key 'colour'; there are: hardware, tiers"),
    "unknown nested key": ("perplexity", "{toknes: 5}", "unknown key 'perplexity.toknes'; did you mean 'tokens'?"),
    "unknown pair": ("pairs", "[flash_spd]", "pair 'flash_spd' doesn't exist; did you mean 'flash_sdp'?"),
    "absent model": ("model", "/absent/model.gguf", "key 'model': /absent/model.gguf doesn't exist; give a path"),
    "absent text": ("text", "/absent/text.txt", "key 'text': /absent/text.txt doesn't exist; give a path"),
    "text is a folder": ("text", "kernels", "key 'text': kernels is not a file; give a UTF-8 text file"),
    "absent device": ("hardware", "h200", "the run is for 'h200' but this machine is 'cpu'; set `hardware: auto`"),
    "not a mapping": ("measure", "3", "key 'measure': 3 is not of type 'object'"),
    "not a number": ("measure", "{rounds: many}", "key 'measure.rounds' (A B B A rounds a process): 'many' is not of"),
    "no threads": ("threads", "0", "key 'threads' (all, or a whole number from 1 up): 0 is not valid"),
    "too few tokens": ("perplexity", "{tokens: 100}", "'perplexity.tokens': must be more than perplexity.window_tok"),
}


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """What was measured before is still there, unless a test works in a copy of its own and says what is lost."""
    if "checkout" in request.fixturenames:
        yield
        return
    smoke: Checkout = request.getfixturevalue("smoke")
    before = modified(smoke.results)
    yield
    assert modified(smoke.results) == before


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_one_line(smoke: Checkout, case: str) -> None:
    key, value, says = SETTINGS[case]
    assert says in error_line(smoke.run("--cores", "all", **{key: value}))


def test_no_cores_are_one_line(smoke: Checkout) -> None:
    assert "--cores 0: nothing can run on no cores; use `--cores all`" in error_line(smoke.run("--cores", "0"))


def test_a_text_of_less_bytes_than_a_window_is_seen_at_once(smoke: Checkout, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short for a window.\n")
    line = error_line(smoke.run(text=str(tmp_path / "short.txt")))
    assert "short.txt has 24 bytes, and one window takes 128 tokens; give a longer text" in line


def test_a_text_of_less_tokens_than_a_window_costs_no_result(checkout: Checkout, tmp_path: Path) -> None:
    write_text(tmp_path / "short.txt", words=40)
    before = modified(checkout.results / "cpu")
    line = error_line(checkout.run(text=str(tmp_path / "short.txt")))
    assert "more than one window of 128 is needed: give a longer text" in line
    assert "short.txt: " in line
    assert modified(checkout.results / "cpu") == before
    assert (checkout.results / "cpu" / "perplexity.json").exists()
    planned = ["prepare_text", "tokenize_text", "perplexity_eval", "judge", "history", "report", "all"]
    assert checkout.planned() == sorted(planned)


def test_a_gguf_of_another_architecture_costs_only_the_model(checkout: Checkout, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    writer.add_context_length(256)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    before = modified(checkout.results / "cpu")
    line = error_line(checkout.run(model=str(tmp_path / "other.gguf")))
    assert "other.gguf" in line
    assert "gpt2" in line
    assert modified(checkout.results / "cpu") == before


def test_wrong_expectations_are_one_line(checkout: Checkout) -> None:
    (checkout.folder / "expectations_cpu.json").write_text('{"hardware": "cpu", "pairs": {"flash_sdp": 3}}')
    before = modified(checkout.results / "cpu" / "pairs")
    compared = checkout.compare()
    assert compared.returncode == 2
    for line in (error_line(compared), error_line(checkout.run("results/cpu/judgement.json"))):
        assert "expectations_cpu.json: wrong schema" in line
        assert "$.pairs[...]" in line
        assert "`python compare.py --update-expectations`" in line
    assert modified(checkout.results / "cpu" / "pairs") == before
    # ... and the mend that it names mends it
    (checkout.folder / "expectations_cpu.json").unlink()
    assert checkout.compare("--update-expectations").returncode in (0, 3)
    assert checkout.run("results/cpu/judgement.json").returncode == 0


def test_an_unknown_key_in_the_workloads_is_one_line(checkout: Checkout) -> None:
    before = modified(checkout.results)
    checkout.append("config/workloads.yaml", "\nflash_three:\n  cpus: []\n")
    line = error_line(checkout.run())
    assert "config/workloads.yaml: unknown key 'flash_three.cpus'; did you mean 'cpu'?" in line
    assert modified(checkout.results) == before


def test_half_a_pair_is_one_line(checkout: Checkout) -> None:
    (checkout.folder / "kernels" / "baseline_alone.py").write_text("")
    line = error_line(checkout.run())
    assert "kernels/optimized_alone.py: missing; a pair is a baseline_ and an optimized_ file" in line


def test_a_pair_without_workloads_is_one_line(checkout: Checkout) -> None:
    for side in ("baseline", "optimized"):
        (checkout.folder / "kernels" / f"{side}_alone.py").write_text("")
    assert "config/workloads.yaml: no entry for pair 'alone'; add one with its cases" in error_line(checkout.run())


@pytest.mark.parametrize("name", ["config/config.yaml", "config/workloads.yaml"])
def test_a_file_that_is_not_yaml_is_one_line(checkout: Checkout, name: str) -> None:
    checkout.append(name, "\nmeasure: [\n")
    assert f"{name}: not YAML" in error_line(checkout.run())
    if name == "config/config.yaml":
        # the gate of a judged run is in its record; only without one is it the config's
        (checkout.results / "cpu" / "judgement.json").unlink()
        compared = checkout.compare()
        assert compared.returncode == 2
        assert f"{name}: not YAML" in error_line(compared)


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_measurement_cut_short_is_one_line_and_its_mend_works(checkout: Checkout) -> None:
    broken = checkout.results / "cpu" / "pairs" / "flash_sdp" / "measure.json"
    cut_short(broken)
    done = checkout.compare()
    assert done.returncode == 2
    line = error_line(done)
    assert "measure.json: not a whole MeasureRecord" in line
    assert "delete it and run `snakemake --cores all` again" in line
    broken.unlink()
    assert checkout.planned() == ["all", "history", "judge", "measure_pair flash_sdp", "report"]
    done = checkout.run("results/cpu/judgement.json")
    assert done.returncode == 0, done.stdout
    assert checkout.compare().returncode != 2


def test_hardware_cut_short_is_one_line(checkout: Checkout) -> None:
    cut_short(checkout.results / "cpu" / "hardware.json")
    done = checkout.call([sys.executable, "scripts/report.py", "--results", "results/cpu", "--out", "page.html"])
    assert "results/cpu/hardware.json: not a whole HardwareRecord" in error_line(done)
    assert not (checkout.folder / "page.html").exists()


def test_a_table_cut_short_is_one_line(checkout: Checkout) -> None:
    cut_short(checkout.results / "cpu" / "pairs" / "flash_sdp" / "samples.parquet")
    assert "samples.parquet: not a whole table of case, process" in error_line(checkout.run())


def test_compare_without_results_is_one_line(fresh: Checkout) -> None:
    line = error_line(fresh.compare())
    assert "results/cpu: nothing measured here yet; run `snakemake --cores all`" in line


def test_expectations_of_another_machine_gate_nothing(checkout: Checkout) -> None:
    content = {"hardware": "b200", "pairs": {}}
    (checkout.folder / "expectations_cpu.json").write_text(json.dumps(content))
    done = checkout.compare()
    assert done.returncode == 2
    assert "expectations for 'b200' can't judge 'cpu'" in error_line(done)
