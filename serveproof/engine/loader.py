"""Reads a Hugging Face directory (config.json and *.safetensors, whole or sharded) into a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serveproof.engine.config import read_config
from serveproof.engine.model import Llama
from serveproof.errors import UserError

INDEX = "model.safetensors.index.json"


def weight_files(directory: Path | str) -> list[Path]:
    """The directory's safetensors files: those that its index names, or model.safetensors, or the only one there.

    Raises UserError when there are none (a directory that holds only pickled .bin files is refused, not unpickled).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name a model directory with config.json and *.safetensors")
    if (directory / INDEX).exists():
        return _indexed_files(directory)
    found = sorted(directory.glob("*.safetensors"))
    if (directory / "model.safetensors") in found:
        return [directory / "model.safetensors"]
    if len(found) == 1:
        return found
    if found:
        raise UserError(f"{directory}: {len(found)} *.safetensors files but no {INDEX}; download the index as well")
    if any(directory.glob("*.bin")):
        raise UserError(
            f"{directory}: holds only pickled weights (*.bin), which can run code when loaded; "
            "convert them to safetensors, or download the model's *.safetensors"
        )
    raise UserError(f"{directory}: no *.safetensors in it; download the model's weights again")


def load_model(directory: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Llama:
    """The model of a directory, every tensor in `dtype` on `device`, in evaluation mode.

    Raises UserError naming the file and the mend: directory, file or tensor missing, tensor of another shape, a tensor
    that the architecture does not know, or a file cut short.
    """
    directory = Path(directory)
    files = weight_files(directory)
    config = read_config(directory / "config.json")
    with torch.device("meta"):
        model = Llama(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            key = name.removeprefix("model.")
            # Old checkpoints carry RoPE's frequencies, and some tied ones a copy of the embedding as their head.
            if key.endswith("rotary_emb.inv_freq") or (key == "lm_head.weight" and config.tie_word_embeddings):
                continue
            if key not in shapes:
                raise UserError(f"{file}: tensor {name} is not part of {Llama.__name__} as config.json describes it")
            if tensor.shape != shapes[key]:
                found, needed = tuple(tensor.shape), tuple(shapes[key])
                raise UserError(f"{file}: tensor {name} has shape {found}, config.json needs {needed}; they must match")
            state[key] = tensor.to(device=device, dtype=dtype)
    missing = sorted(shapes.keys() - state.keys())
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} tensors are missing, {missing[0]} first; download the weights again"
        )
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _indexed_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a safetensors index ({error}); download it again") from None
    for name in names:
        # A name with a path in it could point anywhere on the disk.
        if Path(name).name != name or not (directory / name).is_file():
            raise UserError(f"{directory / name}: named by {INDEX} but not there; download the shard again")
    return [directory / name for name in names]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); prepare or download it again") from None
