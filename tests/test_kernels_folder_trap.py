"""A repository root with a folder named kernels on sys.path must not be taken for the PyPI package of that name."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import torch, transformers
from transformers.utils.import_utils import is_kernels_available
assert not is_kernels_available(), "transformers takes the folder kernels for the package"
config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)
model = transformers.AutoModelForCausalLM.from_config(config)
assert model(torch.arange(8)[None]).logits.shape == (1, 8, 32)
"""


def kernels_installed() -> bool:
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(kernels_installed(), reason="the PyPI package kernels is installed here")
def test_transformers_runs_beside_a_folder_named_kernels(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "baseline_flash_sdp.py").write_text("import nothing_of_this_name\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kernels_is_never_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
