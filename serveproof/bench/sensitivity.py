"""How much each layer's projections cost when they alone are quantized: KL against the fp32 model.

One kind of projection of one layer is quantized at a time, on the same tokens. The layers below are not computed again:
their output does not change. All else is float32: in bf16 any change rounds all that follows anew, and that costs as
much as one projection in fp8. L tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from serveproof.accuracy_records import Sensitivity, SensitivityMap
from serveproof.bench.divergence import kl_and_agreement
from serveproof.bench.windows import Integers
from serveproof.engine.loader import load_model
from serveproof.engine.model import MLP, Layer, Llama, full_attention
from serveproof.engine.quantization import Precision, get_precision, quantized
from serveproof.errors import UserError

# kind -> the layer's part, and its projections that share an input or end the part
KINDS = {
    "q, k, v": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "attention output": ("self_attn", ("o_proj",)),
    "gate, up": ("mlp", ("gate_proj", "up_proj")),
    "down": ("mlp", ("down_proj",)),
}


def quantizing(name: str) -> Precision:
    """The precision of that name. UserError for one that quantizes nothing, or is none."""
    precision = get_precision(name)
    if precision.granularity == "none":
        raise UserError(f"sensitivity: precision {name!r} quantizes nothing; name another")
    return precision


@torch.inference_mode()
def _entries(model: Llama, tokens_L: Tensor) -> list[Tensor]:
    """What each layer gets, and what the last gives: layers + 1 times [L, D]."""
    entries = [model.embed(tokens_L)]
    for index in range(len(model.layers)):
        entries.append(_through(model, entries[-1], index))
    return entries


def _through(model: Llama, x_LD: Tensor, index: int) -> Tensor:
    layer = model.layers[index]
    assert isinstance(layer, Layer)  # noqa: S101 (told to mypy)
    cos_LE, sin_LE = model.rope(torch.arange(len(x_LD), device=x_LD.device))
    return layer.after(x_LD, full_attention(1)(index, *layer.before(x_LD, cos_LE, sin_LE)))


@torch.inference_mode()
def sensitivity(
    directory: Path | str,
    tokens: Integers,
    precision_name: str,
    device: str = "cpu",
    on_cell: Callable[[], object] = lambda: None,
) -> SensitivityMap:
    """A cell a layer and kind of projection. tokens: [L], one sequence, of which all but the last are predicted from.

    UserError for a precision that quantizes nothing. Experts are not told apart: such layers have attention's kinds.
    """
    precision = quantizing(precision_name)
    model = load_model(directory, torch.float32, device)
    entries = _entries(model, torch.as_tensor(tokens, device=device))
    plain_LV = model.logits(model.norm(entries[-1]))
    cells = []
    for index, layer in enumerate(model.layers):
        for kind, (part, names) in KINDS.items():
            parent: nn.Module = getattr(layer, part)
            if part == "mlp" and not isinstance(parent, MLP):
                continue
            kept = {name: getattr(parent, name) for name in names}
            for name, linear in kept.items():
                setattr(parent, name, quantized(linear.weight, precision))
            x_LD = entries[index]
            for above in range(index, len(model.layers)):
                x_LD = _through(model, x_LD, above)
            kl_L, _ = kl_and_agreement(model.logits(model.norm(x_LD)), plain_LV)
            cells.append(Sensitivity(index, kind, float(kl_L.mean())))
            for name, linear in kept.items():
                setattr(parent, name, linear)
            on_cell()
    return SensitivityMap(precision_name, len(tokens), cells)
