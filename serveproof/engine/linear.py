"""Linear layers for speed: projections that share an input as one product, and weights in fewer bits.

int8 and int4 are weight-only, through torch's packed CPU kernels, for decoding is bound by reading the weights. fp8 is
a product of e4m3 numbers on CUDA, activations quantised a row, weights a channel; int8 and fp8 weights are rounded as
perplexity's are (serveproof.engine.quantization). M rows of input, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serveproof.engine.model import MLP, Layer, Llama
from serveproof.engine.quantization import PRECISIONS, quantize_weight
from serveproof.engine.settings import WEIGHTS
from serveproof.errors import UserError
from serveproof.ops.linear import Linear, linear
from serveproof.ops.quantize import quantize_rows

INT4_GROUP, INT4_OUTPUTS = 32, 16
# From here a product is bound by arithmetic, and widening the weights first is faster than the packed kernel.
INT8_ROWS = 16


class Int8Linear(nn.Module):
    """int8 weights with a bf16 scale a channel, symmetric."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        self.values_NK, scale_N = quantize_weight(weight_NK, PRECISIONS["int8_channel"])
        self.scale_N = scale_N.to(torch.bfloat16)

    def forward(self, x_MK: Tensor) -> Tensor:
        if len(x_MK) <= INT8_ROWS:
            return torch._weight_int8pack_mm(x_MK, self.values_NK, self.scale_N)
        return linear(x_MK, self.values_NK.to(x_MK.dtype)) * self.scale_N


class Int4Linear(nn.Module):
    """4-bit weights, a bf16 scale and zero point for each INT4_GROUP of a row's inputs (asymmetric)."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        w_NGg = weight_NK.float().unflatten(1, (-1, INT4_GROUP))
        low_NG, high_NG = w_NGg.amin(-1), w_NGg.amax(-1)
        scale_NG = ((high_NG - low_NG) / 15).clamp(min=1e-8).to(torch.bfloat16)
        # what the kernel computes: (value - 8) * scale + zero
        zero_NG = (low_NG + 8 * scale_NG.float()).to(torch.bfloat16)
        values_NGg = ((w_NGg - zero_NG.float()[..., None]) / scale_NG.float()[..., None] + 8).round().clamp(0, 15)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_NGg.flatten(1).int(), 1)
        self.scale_and_zero_GN2 = torch.stack((scale_NG.t(), zero_NG.t()), dim=-1).contiguous()

    def forward(self, x_MK: Tensor) -> Tensor:
        out_MN: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_MK, self.packed, INT4_GROUP, self.scale_and_zero_GN2
        )
        return out_MN


class Fp8Linear(nn.Module):
    """e4m3 weights with a float32 scale a channel; inputs are quantised a row by one fused kernel."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        self.values_NK, scale_N = quantize_weight(weight_NK, PRECISIONS["fp8_e4m3_channel"])
        self.scale_1N = scale_N[None].contiguous()

    def forward(self, x_MK: Tensor) -> Tensor:
        q_MK, scale_M1 = quantize_rows(x_MK)
        return torch._scaled_mm(
            q_MK, self.values_NK.t(), scale_a=scale_M1, scale_b=self.scale_1N, out_dtype=x_MK.dtype, use_fast_accum=True
        )


PACKED: dict[str, Callable[[Tensor], nn.Module]] = dict(zip(WEIGHTS, (Int8Linear, Int4Linear, Fp8Linear), strict=True))


def fuse_(model: Llama) -> None:
    """Make q, k and v one product, and gate and up one, in place: fewer and larger products of the same weights."""
    for layer in model.layers:
        assert isinstance(layer, Layer)  # noqa: S101 (told to mypy)
        attention = layer.self_attn
        if attention.qkv_proj is not None:
            continue
        attention.qkv_proj = _stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        del attention.q_proj, attention.k_proj, attention.v_proj
        if isinstance(layer.mlp, MLP):
            layer.mlp.gate_up_proj = _stacked(layer.mlp.gate_proj, layer.mlp.up_proj)
            del layer.mlp.gate_proj, layer.mlp.up_proj


def prepare_(model: Llama, weights: str | None) -> None:
    """Make a loaded model ready to serve, in place: fused, and its weights in the bits of that name, if any."""
    fuse_(model)
    if weights:
        pack_(model, weights)


def pack_(model: Llama, weights: str) -> None:
    """Bring the linear layers of a fused model to fewer bits, in place; on a CPU the LM head too.

    Embedding, norms and experts stay; int4's LM head is int8. UserError for a name that is none, or for a device or
    dtype without the kernel.
    """
    if weights not in PACKED:
        raise UserError(f"weights {weights!r} is unknown; there are {', '.join(PACKED)}, or none")
    embedding = model.embed_tokens.weight
    if embedding.is_cuda != (weights == "fp8"):
        where = embedding.device.type
        raise UserError(f"weights {weights!r} has no kernel on {where}; fp8 is for cuda, int8 and int4 for cpu")
    if embedding.dtype != torch.bfloat16:
        raise UserError(f"weights {weights!r} needs dtype bf16, the model is {embedding.dtype}")
    make = PACKED[weights]
    for layer in model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and name != "gate":
                    setattr(parent, name, make(_packable(name, child.weight, weights)))
    if weights != "fp8":
        # In 4 bits the head alone costs several percent of perplexity, and in 8 it is a small part of the weights.
        head = embedding if model.lm_head is None else model.lm_head.weight
        model.lm_head = Int8Linear(head)  # type: ignore[arg-type]


def _packable(name: str, weight_NK: Tensor, weights: str) -> Tensor:
    outputs, inputs = weight_NK.shape
    if weights == "int4" and (inputs % INT4_GROUP or outputs % INT4_OUTPUTS):
        raise UserError(
            f"{name} is {outputs} x {inputs}, int4's kernel takes multiples of {INT4_OUTPUTS} x {INT4_GROUP}; use int8"
        )
    return weight_NK


def _stacked(*layers: nn.Module) -> Linear:
    weight = torch.cat([layer.weight for layer in layers])  # type: ignore[misc]
    made = Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made
