"""Shared fixtures: scripts loaded by path, tiny random models, and the default model converted once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from serveproof.errors import UserError
from tests.locks import locked

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

pytest_plugins = ["tests.host_stalls", "tests.turns"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "test-cache"


def _load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Load scripts/<name>.py as a module: scripts/ is a folder of programs, not a package."""
    return _load_script


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> ModuleType:
    """The script that a test file is named after: test_prepare_model.py gets scripts/prepare_model.py."""
    return _load_script(request.path.stem.removeprefix("test_"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """OpenMP's threads wait for each other: beside a busy neighbour, two are many times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_process_group_stays() -> Iterator[None]:
    """What asks how many ranks there are would answer otherwise after a test that left its group."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("this test left a process group")


@pytest.fixture
def main_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script's main in this process (starting torch anew takes seconds) and return its one line of error."""

    def run(module: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            module.main()
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("serveproof: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """Make a random Llama, or one of its family, with transformers; returns its directory and transformers' model."""

    def make(shard: str = "5GB", family: str = "Llama", **changes: object) -> tuple[Path, torch.nn.Module]:
        import transformers

        fields = {
            "vocab_size": 97,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            # Larger than the default 0.02, so that the logits depend on every part.
            "initializer_range": 0.2,
        }
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**(fields | changes))
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        directory = tmp_path / f"tiny{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(directory, max_shard_size=shard)
        return directory, model

    return make


@pytest.fixture(scope="session")
def default_model() -> Path:
    """SmolLM2-135M-Instruct as prepare_model writes it; converted again only when the converting code changes."""
    code = b"".join(
        (ROOT / name).read_bytes() for name in ("scripts/prepare_model.py", "serveproof/engine/gguf_reader.py")
    )
    directory = CACHE / f"model-{hashlib.sha256(code).hexdigest()[:12]}"
    with locked(CACHE / "lock"):  # another worker may be at it
        if (directory / "model.json").exists():
            return directory
        for stale in CACHE.glob("model-*"):
            shutil.rmtree(stale)
        try:
            _load_script("prepare_model").prepare("default", directory)
        except UserError as error:
            if "could not download" not in str(error):
                raise
            pytest.skip(str(error))
    return directory
