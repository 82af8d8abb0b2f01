"""Weights of a model: from a Hugging Face directory (config.json and *.safetensors, whole or sharded), or random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serveproof.engine.config import ModelConfig, read_config
from serveproof.engine.model import Llama
from serveproof.engine.parallel import SINGLE, Group, check
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


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's tensor goes: a name in the model's state, the dimension that ranks split, and for one
    expert's matrix its row of the stack and its rows in there. heads: KV heads in it, of which none is split."""

    key: str
    split: int | None
    expert: int | None = None
    half: int | None = None
    heads: int | None = None

    def pieces(self, world: int) -> int:
        """How many different shares of it the ranks hold."""
        return min(world, self.heads or world)


def load_model(
    directory: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    group: Group = SINGLE,
) -> Llama:
    """The model of a directory, or a rank's share, every tensor in `dtype` on `device`, in evaluation mode.

    A rank reads only its share from the disk. Everything is checked before anything is allocated: UserError naming the
    file and the mend for a directory, file or tensor that is missing, a tensor of another shape or one that the
    architecture does not know, a file cut short, or a count that does not divide by the ranks.
    """
    directory = Path(directory)
    files = weight_files(directory)
    config = read_config(directory / "config.json")
    if group.expert_parallel and config.experts:
        raise UserError(f"{directory}: experts of a checkpoint are split by width; expert parallel takes a config.json")
    model = _blank(config, group)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    places = _places(config)
    found: set[str] = set()
    for file in files:
        with _opened(file) as opened:
            names = [name for name in opened.keys() if not _ignored(name, config)]  # noqa: SIM118 (not a mapping)
            for name in names:
                _check_shape(file, name, tuple(opened.get_slice(name).get_shape()), places, shapes, group)
            found |= {name.removeprefix("model.") for name in names}
    missing = sorted(places.keys() - found)
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} tensors are missing, {missing[0]} first; download the weights again"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                if not _ignored(name, config):
                    place = places[name.removeprefix("model.")]
                    tensor = _share(opened.get_slice(name), place, group).to(device=device, dtype=dtype)
                    _put(state, place, tensor, shapes[place.key])
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def random_model(
    config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu", group: Group = SINGLE
) -> Llama:
    """A model of the config's shape with seeded random weights, for speed where the real ones are not at hand.

    Matrices are normal with variance 1 / inputs, norms 1: activations keep their size, so nothing overflows in bf16.
    Drawn on the device, so the same seed gives other weights on another kind of device. Ranks draw whole matrices and
    keep their share: the model is the same for any number of them.
    """
    model = _blank(config, group)
    places = {place.key: place for place in _places(config).values()}
    generator = torch.Generator(device=device).manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            state[name] = torch.ones(tensor.shape, dtype=dtype, device=device)
            continue
        shape, split, pieces = list(tensor.shape), places[name].split, places[name].pieces(group.world)
        stacked = tensor.dim() == 3  # of an expert the split is that of its own matrix, or of the stack
        whole_experts = stacked and group.expert_parallel
        dim = 0 if whole_experts else None if split is None else split + stacked
        if dim is not None:
            shape[dim] *= pieces
        drawn = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if dim is not None and group.world > 1:
            halves = drawn.chunk(2, dim) if name.endswith("gate_up") and not whole_experts else (drawn,)
            drawn = torch.cat([half.chunk(pieces, dim)[group.piece(pieces)] for half in halves], dim)
        inputs = shape[-1]
        state[name] = drawn.mul_(inputs**-0.5)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def load_or_draw(
    path: Path, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu", group: Group = SINGLE
) -> Llama:
    """The weights of a directory, or random ones for a config.json."""
    if path.is_dir():
        return load_model(path, dtype, device, group)
    return random_model(read_config(path), seed, dtype, device, group)


def check_shares(config: ModelConfig, group: Group) -> None:
    """UserError, naming the field, unless the ranks can share the model. KV heads may be fewer than ranks."""
    counts = {"num_attention_heads": config.num_attention_heads}
    if group.world % config.num_key_value_heads:
        counts |= {"num_key_value_heads": config.num_key_value_heads}
    if config.experts and group.expert_parallel:
        counts |= {"num_experts": config.experts.count}
    else:
        counts |= {
            "intermediate_size": config.experts.intermediate_size if config.experts else config.intermediate_size
        }
    check(counts | {"vocab_size": config.vocab_size}, group.world)


def _blank(config: ModelConfig, group: Group) -> Llama:
    check_shares(config, group)
    with torch.device("meta"):
        return Llama(config, group)


def _places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor that a checkpoint of this config has, without `model.`."""
    places = {"embed_tokens.weight": Place("embed_tokens.weight", 0), "norm.weight": Place("norm.weight", None)}
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = Place("lm_head.weight", 0)
    splits = {"self_attn.q_proj": 0, "self_attn.o_proj": 1}
    kv_heads = config.num_key_value_heads
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.qk_norm:
        norms += ["self_attn.q_norm", "self_attn.k_norm"]
    if not config.experts:
        splits |= {"mlp.gate_proj": 0, "mlp.up_proj": 0, "mlp.down_proj": 1}
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}"
        places |= {f"{layer}.{name}.weight": Place(f"{layer}.{name}.weight", dim) for name, dim in splits.items()}
        places |= {f"{layer}.{name}.weight": Place(f"{layer}.{name}.weight", None) for name in norms}
        for name in (f"{layer}.self_attn.k_proj.weight", f"{layer}.self_attn.v_proj.weight"):
            places[name] = Place(name, 0, heads=kv_heads)
        if config.experts:
            places |= _expert_places(layer, config)
    return places


def _expert_places(layer: str, config: ModelConfig) -> dict[str, Place]:
    """Qwen3-MoE names an expert's matrices as a plain MLP's, Mixtral w1 (gate), w3 (up) and w2 (down)."""
    assert config.experts is not None  # noqa: S101 (told to mypy)
    block, gate, up, down = (
        ("mlp", "gate_proj", "up_proj", "down_proj") if config.qk_norm else ("block_sparse_moe", "w1", "w3", "w2")
    )
    places = {f"{layer}.{block}.gate.weight": Place(f"{layer}.mlp.gate.weight", None)}
    for expert in range(config.experts.count):
        own = f"{layer}.{block}.experts.{expert}"
        places[f"{own}.{gate}.weight"] = Place(f"{layer}.mlp.gate_up", 0, expert, 0)
        places[f"{own}.{up}.weight"] = Place(f"{layer}.mlp.gate_up", 0, expert, 1)
        places[f"{own}.{down}.weight"] = Place(f"{layer}.mlp.down", 1, expert)
    return places


def _ignored(name: str, config: ModelConfig) -> bool:
    """Old checkpoints carry RoPE's frequencies, and some tied ones a copy of the embedding as their head."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _check_shape(
    file: Path,
    name: str,
    shape: tuple[int, ...],
    places: dict[str, Place],
    shapes: dict[str, torch.Size],
    group: Group,
) -> None:
    place = places.get(name.removeprefix("model."))
    if place is None:
        raise UserError(f"{file}: tensor {name} is not part of {Llama.__name__} as config.json describes it")
    needed = list(shapes[place.key] if place.expert is None else shapes[place.key][1:])
    if place.half is not None:
        needed[0] //= 2
    if place.split is not None:
        needed[place.split] *= place.pieces(group.world)
    if shape != tuple(needed):
        raise UserError(f"{file}: tensor {name} has shape {shape}, config.json needs {tuple(needed)}; they must match")


def _share(tensor: Any, place: Place, group: Group) -> Tensor:
    """This rank's part of a tensor still on the disk."""
    if place.split is None or group.world == 1:
        whole: Tensor = tensor[:]
        return whole
    pieces = place.pieces(group.world)
    size, first = tensor.get_shape()[place.split] // pieces, group.piece(pieces)
    own = slice(first * size, (first + 1) * size)
    part: Tensor = tensor[own] if place.split == 0 else tensor[:, own]
    return part


def _put(state: dict[str, Tensor], place: Place, tensor: Tensor, shape: torch.Size) -> None:
    if place.expert is None:
        state[place.key] = tensor
        return
    if place.key not in state:
        state[place.key] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    rows = slice(None) if place.half is None else slice(place.half * len(tensor), (place.half + 1) * len(tensor))
    state[place.key][place.expert, rows] = tensor


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


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); prepare or download it again") from None
