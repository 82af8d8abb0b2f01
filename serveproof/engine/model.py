"""A plain Llama forward pass (Touvron et al. 2023, arXiv:2302.13971): prefill only, no cache.

Shape suffixes: B batch, L sequence, D hidden, H query heads, K key/value heads, E head_dim, V vocabulary, N any
leading positions. Modules carry the names of Hugging Face's checkpoints, less the leading `model.`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serveproof.engine.config import ModelConfig


def rope_inverse_frequencies(config: ModelConfig) -> Tensor:
    """RoPE's inverse frequencies with the config's scaling, float32 [head_dim / 2] (Su et al. 2021, arXiv:2104.09864).

    The llama3 rule is the one of Meta's llama-models and of transformers' modeling_rope_utils.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    stretched = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return stretched
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * stretched + smooth * frequencies


def rope_cos_sin(config: ModelConfig, positions_L: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, float32 [L, head_dim] each, on positions' device.

    Computed from the config at each call: a buffer would be rounded by a cast of the model to bf16.
    """
    angles_LE = torch.outer(positions_L.float(), rope_inverse_frequencies(config).to(positions_L.device))
    angles_LE = torch.cat((angles_LE, angles_LE), dim=-1)
    return angles_LE.cos(), angles_LE.sin()


def apply_rope(x_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotate queries or keys by position; halves paired as in Hugging Face's checkpoints (not interleaved)."""
    first, second = x_BHLE.chunk(2, dim=-1)
    return x_BHLE * cos_LE + torch.cat((-second, first), dim=-1) * sin_LE


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x_NLD: Tensor) -> Tensor:
        x32 = x_NLD.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x_NLD.dtype)


class Attention(nn.Module):
    """Causal grouped-query self-attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        batch, length, _ = x_BLD.shape
        q_BHLE = self.q_proj(x_BLD).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k_BKLE = self.k_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v_BKLE = self.v_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q_BHLE, k_BKLE = apply_rope(q_BHLE, cos_LE, sin_LE), apply_rope(k_BKLE, cos_LE, sin_LE)
        out_BHLE = F.scaled_dot_product_attention(
            q_BHLE, k_BKLE, v_BKLE, is_causal=True, enable_gqa=self.kv_heads != self.heads
        )
        out_BLD: Tensor = self.o_proj(out_BHLE.transpose(1, 2).reshape(batch, length, -1))
        return out_BLD


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out_BLD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))
        return out_BLD


class Layer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), cos_LE, sin_LE)
        out_BLD: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out_BLD


class Llama(nn.Module):
    """The whole model. Weights are uninitialised until `loader.load_model` or `load_state_dict` fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # A tied model has no head of its own: `logits` reads the embedding.
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Final normed hidden states, [B, L, D] in the model's dtype, of int64 token ids [B, L] from position 0."""
        hidden_BLD: Tensor = self.embed_tokens(tokens_BL)
        cos_LE, sin_LE = rope_cos_sin(self.config, torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        cos_LE, sin_LE = cos_LE.to(hidden_BLD.dtype), sin_LE.to(hidden_BLD.dtype)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, cos_LE, sin_LE)
        normed_BLD: Tensor = self.norm(hidden_BLD)
        return normed_BLD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of the chosen hidden states [N, D]: the costliest GEMM, so pass only those needed."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return F.linear(hidden_ND, head.weight)
