"""A stack of equal transformer-like blocks, as modules whose parameters are the live input tensors.

Shape suffixes: B batch, S sequence, E hidden, F feed-forward, H query heads, K key/value heads, D head_dim, L layers.
Two blocks: with heads a Llama block (RMSNorm, causal grouped-query attention with RoPE, SwiGLU); without, LayerNorm,
up, GELU, down, as in a public B200 record. Both pre-norm with residuals, no biases.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class MlpBlock(nn.Module):
    """x + down(gelu(up(layernorm(x))))."""

    def __init__(self, norm_E: Tensor, up_FE: Tensor, down_EF: Tensor) -> None:
        super().__init__()
        self.norm, self.up, self.down = (nn.Parameter(w, requires_grad=False) for w in (norm_E, up_FE, down_EF))

    def forward(self, x_BSE: Tensor) -> Tensor:
        h_BSE = F.layer_norm(x_BSE, (x_BSE.shape[-1],), self.norm, None, EPS)
        return x_BSE + F.linear(F.gelu(F.linear(h_BSE, self.up)), self.down)


class LlamaBlock(nn.Module):
    """Attention and SwiGLU with fused qkv and gate-up weights; cos and sin (S, D / 2) are the stack's."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm1: Tensor
    norm2: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, weights: dict[str, Tensor], heads: int, kv_heads: int, cos_SR: Tensor, sin_SR: Tensor) -> None:
        super().__init__()
        for name, weight in weights.items():
            setattr(self, name, nn.Parameter(weight, requires_grad=False))
        self.heads, self.kv_heads = heads, kv_heads
        self.register_buffer("cos", cos_SR)
        self.register_buffer("sin", sin_SR)

    def forward(self, x_BSE: Tensor) -> Tensor:
        B, S, E = x_BSE.shape
        H, K = self.heads, self.kv_heads
        qkv_BSF = F.linear(F.rms_norm(x_BSE, (E,), self.norm1, EPS), self.qkv)
        qkv_BGSD = qkv_BSF.view(B, S, H + 2 * K, -1).transpose(1, 2)
        low, high = qkv_BGSD[:, : H + K].chunk(2, dim=-1)
        turned_BGSD = torch.cat((low * self.cos - high * self.sin, high * self.cos + low * self.sin), dim=-1)
        out_BHSD = F.scaled_dot_product_attention(
            turned_BGSD[:, :H], turned_BGSD[:, H:], qkv_BGSD[:, H + K :], is_causal=True, enable_gqa=H != K
        )
        x_BSE = x_BSE + F.linear(out_BHSD.transpose(1, 2).reshape(B, S, -1), self.out)
        gate_BSF, up_BSF = F.linear(F.rms_norm(x_BSE, (E,), self.norm2, EPS), self.gate_up).chunk(2, dim=-1)
        return x_BSE + F.linear(F.silu(gate_BSF) * up_BSF, self.down)


class Stack(nn.Module):
    """Equal blocks one after another."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_BSE: Tensor) -> Tensor:
        for block in self.blocks:
            x_BSE = block(x_BSE)
        return x_BSE


def weight_names(inputs: dict[str, Any]) -> list[str]:
    """The stacked weights (L, ...) among the inputs: those named with a leading `w_`."""
    return [name for name in inputs if name.startswith("w_")]


def make_stack(inputs: dict[str, Any]) -> Stack:
    """Modules over views of the inputs' weights: nothing is copied, so a refill reaches them."""
    names = weight_names(inputs)
    blocks: list[nn.Module] = []
    for layer in range(inputs[names[0]].shape[0]):
        weights = {name.removeprefix("w_"): inputs[name][layer] for name in names}
        if inputs["heads"]:
            blocks.append(LlamaBlock(weights, inputs["heads"], inputs["kv_heads"], inputs["cos_SR"], inputs["sin_SR"]))
        else:
            blocks.append(MlpBlock(weights["norm"], weights["up"], weights["down"]))
    return Stack(blocks).eval()
