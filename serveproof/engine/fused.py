"""The forward pass on CUDA by fused kernels: nine launches a layer, five where one row is decoded.

The same numbers as `Llama.forward` up to rounding, from the same weights. More than one row: serveproof.ops.fused_block
between the library's products. One row of a plain model is bound by reading its weights: there the products are the
gemv kernels of the pair piece_graphs, with norm, RoPE, SiLU and residual within and the launches overlapped. Needs
triton, which a CPU may not have.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from serveproof.engine.attention import PagedAttention
from serveproof.engine.linear import fuse_
from serveproof.engine.model import MLP, Layer, Llama, RMSNorm
from serveproof.engine.parallel import Group
from serveproof.nvtx_ranges import ranged
from serveproof.ops import gemv
from serveproof.ops.decode_step import EPS
from serveproof.ops.fused_block import add_norm, rope_write, silu_mul
from serveproof.ops.gemv_pieces import ONE_ROW, OUTPUT_PREFETCH_BYTES, after_attention

LEAST_BLOCK_K = 512  # inputs at a time of the gemv kernels; with fewer, loads are too short to fill the memory's lanes


class FusedForward:
    """A model's forward over the step that `attention` has planned. max_model_len: rows of the RoPE tables."""

    def __init__(self, model: Llama, attention: PagedAttention, max_model_len: int) -> None:
        fuse_(model)
        self.model, self.attention = model, attention
        positions_P = torch.arange(max_model_len, device=attention.cache.pool.device)
        self.cos_Pf, self.sin_Pf = model.rope_tables(positions_P)
        self.one_row = _one_row_configs(model, attention)

    def __call__(self, tokens_N: Tensor, positions_N: Tensor) -> Tensor:
        """Final normed hidden states [N, D]."""
        x_ND = self.model.embed(tokens_N)
        if len(tokens_N) == 1 and self.one_row and len(self.attention.step.lengths_B) == 1:
            self._one_row(x_ND, positions_N)
            return self.normed(x_ND)
        slots_N = self.attention.step.slots_N
        q_NHE = self.before(0, x_ND, None, positions_N, slots_N)
        for index in range(1, len(self.model.layers)):
            delta_ND = self.after(index - 1, x_ND, self.attention.read(index - 1, q_NHE))
            q_NHE = self.before(index, x_ND, delta_ND, positions_N, slots_N)
        last = len(self.model.layers) - 1
        return self.normed(x_ND, self.after(last, x_ND, self.attention.read(last, q_NHE)))

    def before(
        self, index: int, x_ND: Tensor, delta_ND: Tensor | None, positions_N: Tensor, slots_N: Tensor,
        q_NHE: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """A layer up to its attention: x gets `delta` in place, keys and values go to the cache. The queries, in q
        where that is given."""
        layer = self._of(index)
        attention, cache = layer.self_attn, self.attention.cache
        h_ND = add_norm(x_ND, delta_ND, layer.input_layernorm.weight, layer.input_layernorm.eps)
        assert attention.qkv_proj is not None  # noqa: S101 (fused in __init__)
        norms = _head_norms(attention.q_norm, attention.k_norm)
        return rope_write(
            attention.qkv_proj(h_ND), self.cos_Pf, self.sin_Pf, positions_N, slots_N, attention.heads,
            *cache.rows(index), cache.scales_of(index), norms, layer.input_layernorm.eps, q_NHE,
        )  # fmt: skip

    def after(self, index: int, x_ND: Tensor, out_NHE: Tensor) -> Tensor:
        """A layer after its attention: x gets what attention adds, in place. What the MLP adds."""
        layer = self._of(index)
        out_ND = layer.self_attn.output(out_NHE)
        h_ND = add_norm(x_ND, out_ND, layer.post_attention_layernorm.weight, layer.post_attention_layernorm.eps)
        return self._mlp(layer.mlp, h_ND) if isinstance(layer.mlp, MLP) else layer.mlp(h_ND)

    def normed(self, x_ND: Tensor, delta_ND: Tensor | None = None) -> Tensor:
        """The hidden states that the LM head takes."""
        return add_norm(x_ND, delta_ND, self.model.norm.weight, self.model.norm.eps)

    def _of(self, index: int) -> Layer:
        layer = self.model.layers[index]
        assert isinstance(layer, Layer)  # noqa: S101 (told to mypy)
        return layer

    @partial(ranged, "mlp")
    def _mlp(self, mlp: MLP, h_ND: Tensor) -> Tensor:
        assert mlp.gate_up_proj is not None  # noqa: S101 (fused in __init__)
        return mlp.group.all_reduce(mlp.down_proj(silu_mul(mlp.gate_up_proj(h_ND))))

    def _one_row(self, x_1D: Tensor, positions_1: Tensor) -> None:
        """All layers for one decoding sequence; x becomes the last one's output."""
        cache, slots_1 = self.attention.cache, self.attention.step.slots_N
        layers: Any = self.model.layers
        for index, layer in enumerate(layers):
            attention, mlp = layer.self_attn, layer.mlp
            q_1HE = x_1D.new_empty((1, attention.heads, attention.head_dim))
            gemv.qkv(
                x_1D, layer.input_layernorm.weight, attention.qkv_proj.weight, self.cos_Pf, self.sin_Pf,
                positions_1, slots_1, q_1HE, *cache.rows(index), self.one_row["qkv"], True, attention.o_proj.weight,
                OUTPUT_PREFETCH_BYTES,
            )  # fmt: skip
            out_1D = self.attention.read(index, q_1HE).flatten(1)
            weights = (
                attention.o_proj.weight, layer.post_attention_layernorm.weight, mlp.gate_up_proj.weight,
                mlp.down_proj.weight,
            )  # fmt: skip
            if mlp.group.world == 1:
                after_attention(x_1D, out_1D, *weights, self.one_row, True)
            else:
                share_after_attention(x_1D, out_1D, *weights, self.one_row, True, mlp.group)


def share_after_attention(
    x_BE: Tensor, attention_BF: Tensor, wo_EF: Tensor, norm_E: Tensor, gate_up_FE: Tensor, down_EF: Tensor,
    config: dict[str, Any], pdl: bool, group: Group,
) -> None:  # fmt: skip
    """`after_attention` of a rank's share. x, the same on all ranks, goes in at rank 0: the sum brings it to all."""
    first = group.rank == 0
    act_BF = x_BE.new_empty((len(x_BE), gate_up_FE.shape[0] // 2))
    gemv.linear(attention_BF, None, wo_EF, x_BE, first, config["output"], pdl)
    group.all_reduce(x_BE)
    gemv.gate_up(x_BE, norm_E, gate_up_FE, act_BF, config["gate_up"], pdl)
    gemv.linear(act_BF, None, down_EF, x_BE, first, config["down"], pdl)
    group.all_reduce(x_BE)


def _head_norms(q_norm: RMSNorm | None, k_norm: RMSNorm | None) -> tuple[Tensor, Tensor] | None:
    return None if q_norm is None or k_norm is None else (q_norm.weight, k_norm.weight)


def _one_row_configs(model: Llama, attention: PagedAttention) -> dict[str, gemv.Config]:
    """Launch shapes of the gemv kernels by product; empty where they don't take this model: they want plain linear
    layers and sm_90. A block that doesn't divide a rank's share of the inputs is halved until it does."""
    config, cache = model.config, attention.cache
    if (
        config.qk_norm
        or config.experts is not None
        or cache.scales is not None
        or config.rms_norm_eps != EPS
        or not gemv.is_cuda_90(cache.pool)
        or config.head_dim % ONE_ROW["qkv"].block_n
    ):
        return {}
    layer: Any = model.layers[0]
    products = {
        "qkv": layer.self_attn.qkv_proj,
        "output": layer.self_attn.o_proj,
        "gate_up": layer.mlp.gate_up_proj,
        "down": layer.mlp.down_proj,
    }
    if not all(isinstance(product, nn.Linear) for product in products.values()):
        return {}
    found = {name: launch_shape(ONE_ROW[name], product.in_features) for name, product in products.items()}
    fit = all(gemv.fits(product.out_features, product.in_features, found[name]) for name, product in products.items())
    return found if fit else {}


def launch_shape(config: gemv.Config, inputs: int) -> gemv.Config:
    """`config` with the largest block_k that divides `inputs`, if it is LEAST_BLOCK_K or more; else `config`."""
    block_k = gcd(config.block_k, inputs)
    return replace(config, block_k=block_k) if block_k >= LEAST_BLOCK_K else config
