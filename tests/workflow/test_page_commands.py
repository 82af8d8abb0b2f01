"""Every command of the README and of the tutorial: run in a copy of the smoke run, or held by a test that is named.

Run means run: the program starts and does its work. Only sizes and places are others (`Run.more`, `as_run`): the quick
config, a tiny model and a text of the test's own, this Python. A command that is in neither list fails a test.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from serveproof import results
from tests.workflow.conftest import ROOT, Checkout, Done

# The last one adds a pair, which the commands of the others would measure too.
PAGES = ["README.md", *(f"docs/tutorial/{name}.md" for name in ("first_report", "add_a_model", "publish"))]
PAGES += ["docs/tutorial/run_on_slurm.md", "docs/tutorial/add_a_pair.md"]
PAIR_PAGE = ROOT / PAGES[-1]
FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?[^\n]*\n(.*?)^\1```$', re.M | re.S)
TREE = re.compile(r"^## Tree\n+```\n.*?^```$", re.M | re.S)
INLINE = re.compile(r"`((?:make|snakemake|python|pip|git|promtool|prometheus) [^`\n]*)`")


@dataclass(frozen=True)
class Run:
    """A command that is run. more: what is added to it, mostly sizes. codes: the exit codes that are no fault."""

    more: str = ""
    codes: tuple[int, ...] = (0,)


SMALL = "--requests 4 --prompts 8 16 --outputs 4 8 --prefill 32 --runs 1"
JUDGED = (0, 1, 3)  # figures of a quick run mean nothing, so any verdict may come of them
RUN = {
    "make report": Run(),
    "make test": Run('ARGS="-q tests/test_results.py"'),
    "make report PYTHON=/path/python VENV=none": Run(),
    "snakemake --cores all": Run(),
    "make help": Run(),
    'make report PUBLISHED="h200 2x_h200"': Run(),
    "make publish": Run(),
    "snakemake --cores all --configfile config/smoke.yaml": Run(),
    "snakemake --cores all --config 'pairs=[flash_sdp]'": Run(),
    "python scripts/engine_benchmark.py --model DIR --peer transformers": Run(f"--dtype fp32 {SMALL}"),
    "python scripts/inference_optimizations_blackwell.py --model DIR": Run(
        "--dtype fp32 --requests 2 --batch 2 --shared 4 --prompt 12 --tokens 6"
    ),
    "python scripts/cache_monitoring.py --model DIR": Run("--rounds 5 --requests 6 --prompt 20 --output 5"),
    "python -m cli.aisp bench list-targets --chapter ch16": Run(),
    "python compare.py": Run(codes=JUDGED),
    "python compare.py --update-expectations": Run(codes=JUDGED),
    'make report ARGS="--configfile config/smoke.yaml"': Run(),
    "ls results/cpu": Run(),
    "snakemake --cores all --config model=DIR text=FILE": Run(),
    "python scripts/engine_benchmark.py --model config/models/tiny.json --dtype fp32": Run(SMALL),
    'make publish PUBLISHED="h200 2x_h200"': Run(),
    "cp -r results/cpu reports/published/my_cpu": Run(),
    'make publish PUBLISHED="my_cpu h200"': Run(),
    "snakemake --report reports/snakemake.html": Run(),
    "snakemake --report reports/snakemake.zip": Run(),
    "snakemake --cores all --config 'pairs=[rms_norm]'": Run(),
}
OF_THE_TUTORIAL = "tests/workflow/test_page_commands.py::test_the_tutorial_s_pair_passed"
ON_SLURM = "tests/slurm/test_run.py::test_two_kinds_of_machine_give_one_report"
COVERED = {
    "make test-clients": "tests/clients/test_load_clients.py::test_all_clients_recover_known_latencies",
    "make test-long": "tests/server/test_reliability.py::test_twice_what_it_can_carry_leaves_nobody_without_an_answer",
    "make clean": "tests/workflow/test_aisp.py::test_clean_keeps_the_history",
    "python -m cli.aisp bench run --targets ch16:flash_sdp --profile minimal": (
        "tests/workflow/test_aisp.py::test_a_target_is_the_dags_own_files_and_no_more"
    ),
    "python compare.py --targets flash_sdp --iterations 20": (
        "tests/workflow/test_aisp.py::test_compare_runs_what_it_is_told_to_and_judges_that"
    ),
    "python compare.py --against HEAD~1": "tests/workflow/test_aisp.py::test_a_run_is_found_by_its_commit",
    "make docs": "tests/docs/test_site.py::test_it_is_built_strictly",
    "make slurm-check": "tests/slurm/test_bad_input.py::test_the_check_passes_what_is_good_and_leaves_nothing",
    "snakemake --profile profiles/slurm": ON_SLURM,
    "snakemake --profile profiles/slurm --configfile config/smoke.yaml": ON_SLURM,
    "snakemake --cores all --config 'pairs=[X]'": OF_THE_TUTORIAL,
    "python scripts/inference_server_load_test.py --model DIR --duration 120": (
        "tests/load_test/test_scripts.py::test_all_scenarios_are_recorded"
    ),
    "python scripts/dcgm_prometheus_exporter.py": (
        "tests/telemetry/test_exporter.py::test_without_a_gpu_it_serves_the_host_and_says_why"
    ),
    "python scripts/start_ranks.py --nodes 1 --ranks 2 scripts/inference_serving_multigpu.py --model DIR --check": (
        "tests/engine/test_parallel.py::test_two_ranks_equal_one"
    ),
    "python scripts/start_ranks.py --nodes 1 --ranks 2 scripts/multi_gpu_validation.py": (
        "tests/distributed/test_group.py::test_two_nodes_of_one_rank_each_meet_over_loopback"
    ),
}


def commands_of(page: str) -> list[str]:
    """The commands of a page in their order: lines of blocks without a language, and commands within sentences."""
    text = TREE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    blocks = [body for _, language, _, body in FENCE.findall(text) if not language]
    lines = [re.split(r"\s+# ", line)[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys([*filter(None, lines), *INLINE.findall(FENCE.sub("", text))]))


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))


def files_of(page: Path) -> dict[str, str]:
    """path -> content of the files that a page shows."""
    return {title: body for _, _, title, body in FENCE.findall(page.read_text(encoding="utf-8")) if title}


@pytest.fixture(scope="module")
def place(smoke: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the smoke run that the commands of all pages run in, one after another."""
    return smoke.copy(tmp_path_factory.mktemp("commands") / "checkout")


def as_run(command: str, more: str, place: Checkout) -> list[str]:
    """The command with the quick config, the test's model and text, and this Python."""
    model, text = place.settings["model"], place.settings["text"]
    placed = {"DIR": model, "FILE": text, "PYTHON=/path/python": f"PYTHON={sys.executable}"}
    words = [placed.get(word, word) for word in shlex.split(f"{command} {more}")]
    words = [word.replace("model=DIR", f"model={model}").replace("text=FILE", f"text={text}") for word in words]
    quick = ["--configfile", "config/smoke.yaml"]
    own = [f"model={model}", f"text={text}"]
    if words[0] == "make":
        if "report" in words and "PUBLISHED=" not in command:
            words = [word for word in words if not word.startswith("ARGS=")]
            words.append("ARGS=" + shlex.join([*quick, "--config", *own]))
        return [*words, f"PYTHON={sys.executable}", "VENV=none"]
    if words[0] == "snakemake":
        given = words[1:] + ([] if "--configfile" in words else quick)
        at = given.index("--config") + 1 if "--config" in given else len(given)
        return [
            sys.executable,
            "-m",
            "snakemake",
            *given[:at],
            *([] if at < len(given) else ["--config"]),
            *own,
            *given[at:],
        ]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def add_what_the_page_shows(place: Checkout) -> None:
    """The files of the tutorial's pair: kernels as they are, cases at the end of the workloads."""
    for name, content in files_of(PAIR_PAGE).items():
        if name.endswith(".yaml"):
            place.append(name, "\n" + content)
        else:
            (place.folder / name).write_text(content)


def test_every_command_is_run_or_covered() -> None:
    assert set(COMMANDS) == {*RUN, *COVERED}
    assert not set(RUN) & set(COVERED)
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs/tutorial").glob("*.md")} < set(PAGES)


@pytest.mark.parametrize("test", sorted(set(COVERED.values())))
def test_what_covers_a_command_is_a_test(test: str) -> None:
    file, _, name = test.partition("::")
    assert name in {
        one.name for one in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(one, ast.FunctionDef)
    }


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in RUN])
def test_a_command_does_what_it_says(command: str, place: Checkout) -> None:
    if "rms_norm" in command:
        add_what_the_page_shows(place)
    done: Done = place.call(as_run(command, RUN[command].more, place))
    assert done.returncode in RUN[command].codes, done.stdout
    assert "Traceback" not in done.stdout
    missing = [name for name in left_by(command) if not (place.folder / name).exists()]
    assert not missing, done.stdout


def left_by(command: str) -> Iterator[str]:
    """What a command must have left."""
    if "make report" in command or "snakemake --cores" in command:
        yield "reports/index.html"
    if "make publish" in command:
        names = re.findall(r'PUBLISHED="([^"]+)"', command)
        for name in names[0].split() if names else ["cpu"]:
            yield f"reports/site/{name}/ro-crate-metadata.json"
    if "--report" in command:
        yield command.split()[-1]


def test_the_tutorial_s_pair_passed(place: Checkout) -> None:
    """After its command ran (this test alone runs it): the kernels on the page verify and are timed."""
    record = place.results / "cpu/pairs/rms_norm/measure.json"
    if not record.exists():
        test_a_command_does_what_it_says("snakemake --cores all --config 'pairs=[rms_norm]'", place)
    (case,) = results.read(record, results.MeasureRecord).cases
    assert (case.case, case.status, case.reason) == ("tokens_512", "passed", "")


def test_the_tutorial_s_workloads_are_added_and_not_replaced() -> None:
    added = yaml.safe_load(files_of(PAIR_PAGE)["config/workloads.yaml"])
    assert not set(added) & set(yaml.safe_load((ROOT / "config/workloads.yaml").read_text()))
