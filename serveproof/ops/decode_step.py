"""One decode step of a Llama-shaped model in its parts, as plain torch: what is dense, and the attention between.

RMSNorm, rotary positions (rotate-half, as Hugging Face's Llama), GQA, SwiGLU, head tied to nothing. Each part is a
function of tensors, so that it can be launched as it is, compiled, or captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

WEIGHT_SEED = 7
EPSILON = 1e-5


@dataclass
class Layer:
    """Weights as Linear stores them: qkv ((QH + 2 KVH) D, E), out (E, QH D), gate_up (2 F, E), down (E, F)."""

    norm_E: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm_E: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass
class Weights:
    """A model's weights from one fixed seed, and its tables of rotary angles (positions, D / 2)."""

    layers: list[Layer]
    norm_E: torch.Tensor
    head: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    q_heads: int
    kv_heads: int

    @property
    def streamed_bytes(self) -> int:
        """Bytes that a step must read."""
        per_layer = [sum(t.nbytes for t in vars(layer).values()) for layer in self.layers]
        return sum(per_layer) + self.head.nbytes + self.norm_E.nbytes


def weight_count(axes: dict[str, Any]) -> int:
    """Numbers that a step reads of the weights."""
    E, D, FFN = axes["hidden"], axes["head_dim"], axes["ffn"]
    qkv, out = (axes["q_heads"] + 2 * axes["kv_heads"]) * D * E, axes["q_heads"] * D * E
    return int(axes["layers"] * (qkv + out + 3 * E * FFN + 2 * E) + axes["vocab"] * E + E)


def make_weights(axes: dict[str, Any], device: str, dtype: torch.dtype) -> Weights:
    """Weights for the axes layers, hidden, q_heads, kv_heads, head_dim, ffn, vocab, context."""
    generator = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
    E, D, FFN = axes["hidden"], axes["head_dim"], axes["ffn"]

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device, dtype=dtype) * columns**-0.5

    def around_one() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(E, generator=generator, device=device)).to(dtype)

    layers = [
        Layer(
            around_one(),
            normal((axes["q_heads"] + 2 * axes["kv_heads"]) * D, E),
            normal(E, axes["q_heads"] * D),
            around_one(),
            normal(2 * FFN, E),
            normal(E, FFN),
        )
        for _ in range(axes["layers"])
    ]
    angles = torch.arange(axes["context"] + 1)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
    cos, sin = angles.cos().to(device), angles.sin().to(device)
    return Weights(layers, around_one(), normal(axes["vocab"], E), cos, sin, axes["q_heads"], axes["kv_heads"])


def rms_norm(x_BE: torch.Tensor, norm_E: torch.Tensor) -> torch.Tensor:
    """RMSNorm, in float32, back to x's dtype."""
    return F.rms_norm(x_BE, x_BE.shape[-1:], norm_E, EPSILON)


def qkv(
    h_BE: torch.Tensor,
    layer: Layer,
    weights: Weights,
    position_1: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
) -> torch.Tensor:
    """Rotated q (B, QH, D); the new token's k and v go into the cache at the position, a tensor of one int64."""
    D = k_BSHD.shape[-1]
    both_BHD = F.linear(rms_norm(h_BE, layer.norm_E), layer.qkv).view(len(h_BE), -1, D)
    QH, KVH = weights.q_heads, weights.kv_heads
    rotated_BHD = rotate(both_BHD[:, : QH + KVH], weights.cos[position_1], weights.sin[position_1])
    k_BSHD.index_copy_(1, position_1, rotated_BHD[:, QH:, :][:, None])
    v_BSHD.index_copy_(1, position_1, both_BHD[:, QH + KVH :][:, None])
    return rotated_BHD[:, :QH]


def rotate(x_BHD: torch.Tensor, cos_1C: torch.Tensor, sin_1C: torch.Tensor) -> torch.Tensor:
    """Rotary positions: pairs are (i, i + D / 2)."""
    low, high = x_BHD.float().chunk(2, dim=-1)
    return torch.cat([low * cos_1C - high * sin_1C, high * cos_1C + low * sin_1C], dim=-1).to(x_BHD.dtype)


def attend(q_BHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, length: int) -> torch.Tensor:
    """Attention of one new token over the first `length` cached ones, as (B, QH D)."""
    k_BHSD, v_BHSD = k_BSHD[:, :length].transpose(1, 2), v_BSHD[:, :length].transpose(1, 2)
    return F.scaled_dot_product_attention(q_BHD[:, :, None], k_BHSD, v_BHSD, enable_gqa=True).flatten(1)


def out(attended_BE: torch.Tensor, h_BE: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Output projection and residual."""
    return h_BE + F.linear(attended_BE, layer.out)


def mlp(h_BE: torch.Tensor, layer: Layer) -> torch.Tensor:
    """SwiGLU and residual."""
    gate_BF, up_BF = F.linear(rms_norm(h_BE, layer.mlp_norm_E), layer.gate_up).chunk(2, dim=-1)
    return h_BE + F.linear(F.silu(gate_BF) * up_BF, layer.down)


def head(h_BE: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Logits (B, V)."""
    return F.linear(rms_norm(h_BE, weights.norm_E), weights.head)
