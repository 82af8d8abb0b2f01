"""A copy of the repository to run the DAG in, with a tiny model and a text of its own: nothing is fetched."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]
# the whole quick DAG takes 135 s on two cores, and took 310 when their host was busy
HANGS_S = 900


@dataclass(frozen=True)
class Checkout:
    """One copy of the repository; snakemake and compare.py run in it as a user runs them."""

    folder: Path
    settings: dict[str, str]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def environment(self) -> dict[str, str]:
        """No GPU, and leases of its own, so that other runs on this machine don't make these wait."""
        temporary = self.folder.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        own = {"PYTHONPATH": str(self.folder), "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **own}

    def snakemake(self, *arguments: str, **settings: str) -> list[str]:
        """The command of the quick run; `settings` change its config."""
        config = [f"{key}={value}" for key, value in {**self.settings, **settings}.items()]
        return [
            *(sys.executable, "-m", "snakemake", *arguments, "--configfile", "config/smoke.yaml", "--config", *config)
        ]

    def start(self, command: list[str], **more: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment(), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, command: list[str], **more: str) -> Done:
        """Run a command to its end; stdout holds stderr too."""
        process = self.start(command, **more)
        output, _ = process.communicate(timeout=HANGS_S)
        return subprocess.CompletedProcess(command, process.returncode, output)

    def run(self, *arguments: str, **settings: str) -> Done:
        return self.call(self.snakemake(*arguments, **settings))

    def compare(self, *arguments: str) -> Done:
        return self.call([sys.executable, "compare.py", *arguments])

    def planned(self, *arguments: str, **settings: str) -> list[str]:
        """What a dry run would run: rule names, with the pair where the rule has one."""
        done = self.run("--dry-run", *arguments, **settings)
        assert done.returncode == 0, done.stdout
        jobs = []
        for name, body in re.findall(r"^(?:local)?rule (\w+):\n((?:[ ].*\n)+)", done.stdout, re.M):
            pair = re.search(r"wildcards: .*\bpair=(\w+)$", body, re.M)
            jobs.append(f"{name} {pair[1]}" if pair else name)
        return sorted(jobs)

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)

    def copy(self, folder: Path) -> Checkout:
        """Results, metadata and all."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder, self.settings)


def error_line(done: Done) -> str:
    """The one line that tells the user what is wrong; and that nothing else frightens him."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout
    lines = {line for line in done.stdout.splitlines() if line.startswith("serveproof: ")}
    assert len(lines) == 1, done.stdout
    return lines.pop()


def modified(folder: Path) -> dict[str, int]:
    """When each file was last written; a log says that something ran, and is no result."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def repository(folder: Path) -> None:
    """Copy what git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def write_text(file: Path, words: int) -> None:
    """A text of random English words."""
    vocabulary = ["the", "a", "cat", "dog", "sat", "on", "mat", "and", "ran", "over", "lazy", "fox", "quick", "brown"]
    chosen = random.Random(0).choices(vocabulary, k=words)  # noqa: S311 - not for secrets
    lines = (" ".join(chosen[start : start + 12]) for start in range(0, words, 12))
    file.write_text("\n".join(lines) + "\n")


def write_model(folder: Path, text: Path) -> None:
    """A random Llama, and a byte-level tokenizer trained on `text`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False)
    tokenizer.train([str(text)], trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The repository, a model and a text; nothing has run. Tests work in copies."""
    folder = tmp_path_factory.mktemp("workflow")
    write_text(folder / "text.txt", words=3000)
    write_model(folder / "model", folder / "text.txt")
    repository(folder / "checkout")
    settings = {"model": str(folder / "model"), "text": str(folder / "text.txt")}
    return Checkout(folder / "checkout", settings)


@pytest.fixture(scope="session")
def smoke_run(fresh: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Done]:
    """The whole DAG, run once, and what it said."""
    checkout = fresh.copy(tmp_path_factory.mktemp("smoke") / "checkout")
    return checkout, checkout.run("--cores", "all")


@pytest.fixture(scope="session")
def smoke(smoke_run: tuple[Checkout, Done]) -> Checkout:
    """The whole DAG has run here. Only for tests that change nothing."""
    checkout, done = smoke_run
    assert done.returncode == 0, done.stdout
    return checkout


@pytest.fixture
def checkout(smoke: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the run, to change."""
    return smoke.copy(tmp_path / "checkout")
