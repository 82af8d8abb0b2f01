"""The decoder's forward pass over the tokens of a step, whatever sequences they belong to.

The model knows nothing of caches, pages or batches: `attend(layer, q, k, v)` is given. Tensor names carry their shapes:
N tokens of a step, B sequences, L tokens of one, D hidden, H query heads, K KV heads, E head dimension, V vocabulary.
Module names are those of Hugging Face checkpoints without `model.`, so a state dict loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serveproof.engine.config import ModelConfig
from serveproof.engine.moe import SparseMLP
from serveproof.engine.parallel import SINGLE, Group
from serveproof.nvtx_ranges import ranged
from serveproof.ops.linear import Linear, linear

# attend(layer, q_NHE, k_NKE, v_NKE) -> out_NHE
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def rope_inverse_frequencies(config: ModelConfig) -> Tensor:
    """float32 [head_dim / 2], radians a token, with the config's scaling (RoPE: Su et al. 2021, arXiv:2104.09864).

    The llama3 rule is the one of Meta's llama-models, yarn's that of its paper, both as in transformers'
    modeling_rope_utils.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    stretched = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return stretched
    if scaling.rope_type == "yarn":

        def dimension_at(turns: float) -> float:
            trained = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
            return config.head_dim * math.log(trained) / (2 * math.log(config.rope_theta))

        low = max(math.floor(dimension_at(scaling.beta_fast)), 0)
        high = min(math.ceil(dimension_at(scaling.beta_slow)), config.head_dim - 1)
        ramp = (torch.arange(config.head_dim // 2).float() - low) / max(high - low, 1e-3)
        smooth = 1 - ramp.clamp(0.0, 1.0)
    else:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        smooth = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - smooth) * stretched + smooth * frequencies


def apply_rope(x_NHE: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
    """Rotate queries or keys by position; halves paired as in Hugging Face's checkpoints (not interleaved).

    The first half of sin_NE is negated (`Llama.rope`): then the other half of each pair comes by a roll.
    """
    return x_NHE * cos_NE[:, None] + x_NHE.roll(x_NHE.shape[-1] // 2, -1) * sin_NE[:, None]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    Rounded to x's dtype before the weight, as transformers does; F.rms_norm given the weight rounds after it.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, self.weight.shape, None, self.eps)


class Attention(nn.Module):
    """The projections of causal grouped-query self-attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        self.heads, self.kv_heads = group.share(config.num_attention_heads), group.share(config.num_key_value_heads)
        self.head_dim, self.group = config.head_dim, group
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)
        self.qkv_proj: nn.Module | None = None  # the three as one, once `linear.fuse_` has made it
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def project(self, x_ND: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [N, H, E], k and v [N, K, E], positions rotated in."""
        if self.qkv_proj is None:
            qkv = torch.cat((self.q_proj(x_ND), self.k_proj(x_ND), self.v_proj(x_ND)), dim=-1)
        else:
            qkv = self.qkv_proj(x_ND)
        qk_NGE, v_NKE = qkv.view(len(x_ND), -1, self.head_dim).split((self.heads + self.kv_heads, self.kv_heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q_NHE, k_NKE = qk_NGE.split((self.heads, self.kv_heads), 1)
            qk_NGE = torch.cat((self.q_norm(q_NHE), self.k_norm(k_NKE)), 1)
        q_NHE, k_NKE = apply_rope(qk_NGE, cos_NE, sin_NE).split((self.heads, self.kv_heads), 1)
        return q_NHE, k_NKE, v_NKE

    def output(self, out_NHE: Tensor) -> Tensor:
        """[N, D], summed over the ranks."""
        return self.group.all_reduce(self.o_proj(out_NHE.flatten(-2)))


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        width = group.share(config.intermediate_size)
        self.group = group
        self.gate_proj = Linear(config.hidden_size, width)
        self.up_proj = Linear(config.hidden_size, width)
        self.down_proj = Linear(width, config.hidden_size)
        self.gate_up_proj: nn.Module | None = None  # the two as one, once `linear.fuse_` has made it

    @partial(ranged, "mlp")
    def forward(self, x_ND: Tensor) -> Tensor:
        if self.gate_up_proj is None:
            gate_NF, up_NF = self.gate_proj(x_ND), self.up_proj(x_ND)
        else:
            gate_NF, up_NF = self.gate_up_proj(x_ND).chunk(2, dim=-1)
        return self.group.all_reduce(self.down_proj(F.silu(gate_NF) * up_NF))


class Layer(nn.Module):
    """One pre-norm transformer block, in the two pieces between which attention reads the cache."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, group)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MLP(config, group) if config.experts is None else SparseMLP(config.hidden_size, config.experts, group)
        )

    def before(self, x_ND: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the step's tokens."""
        return self.self_attn.project(self.input_layernorm(x_ND), cos_NE, sin_NE)

    def after(self, x_ND: Tensor, out_NHE: Tensor) -> Tensor:
        """The layer's output from attention's."""
        x_ND = x_ND + self.self_attn.output(out_NHE)
        result: Tensor = x_ND + self.mlp(self.post_attention_layernorm(x_ND))
        return result


Before = Callable[[Layer, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
After = Callable[[Layer, Tensor, Tensor], Tensor]


class Llama(nn.Module):
    """The whole model, or a rank's share of it. Weights are uninitialised until the loader fills them."""

    def __init__(self, config: ModelConfig, group: Group = SINGLE) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.vocabulary = group.share(config.vocab_size)
        self.embed_tokens = nn.Embedding(self.vocabulary, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, group) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # A tied model has no head of its own: `logits` reads the embedding.
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, self.vocabulary)
        # Not a buffer, which a cast of the model to bf16 would round.
        self.frequencies = rope_inverse_frequencies(config)

    def embed(self, tokens_N: Tensor) -> Tensor:
        """Embeddings [N, D]; each rank looks up those of its share, and their sum has them all."""
        if self.group.world == 1:
            return F.embedding(tokens_N, self.embed_tokens.weight)
        local_N = tokens_N - self.group.rank * self.vocabulary
        mine_N = (local_N >= 0) & (local_N < self.vocabulary)
        found_ND = F.embedding(local_N.clamp(0, self.vocabulary - 1), self.embed_tokens.weight)
        return self.group.all_reduce(found_ND * mine_N[:, None])

    def rope(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [N, E] of every position's angles, in the model's dtype, by float32; see `apply_rope`."""
        dtype = self.embed_tokens.weight.dtype
        cos_Nf, sin_Nf = self.rope_tables(positions_N)
        return torch.cat((cos_Nf, cos_Nf), -1).to(dtype), torch.cat((-sin_Nf, sin_Nf), -1).to(dtype)

    def rope_tables(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every position's angles, float32 [N, E / 2] each."""
        if self.frequencies.device != positions_N.device:
            self.frequencies = rope_inverse_frequencies(self.config).to(positions_N.device)
        angles_Nf = torch.outer(positions_N.float(), self.frequencies)
        factor = self.config.rope_scaling.attention_factor if self.config.rope_scaling else 1.0
        return angles_Nf.cos() * factor, angles_Nf.sin() * factor

    def forward(
        self,
        tokens_N: Tensor,
        positions_N: Tensor,
        attend: Attend,
        before: Before = Layer.before,
        after: After = Layer.after,
    ) -> Tensor:
        """Final normed hidden states [N, D] in the model's dtype, of int64 token ids [N] at int64 positions [N].

        before, after: the layer's two pieces, perhaps compiled.
        """
        x_ND = self.embed(tokens_N)
        cos_NE, sin_NE = self.rope(positions_N)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)  # noqa: S101 (told to mypy)
            x_ND = after(layer, x_ND, attend(index, *before(layer, x_ND, cos_NE, sin_NE)))
        normed_ND: Tensor = self.norm(x_ND)
        return normed_ND

    def full(self, tokens_BL: Tensor) -> Tensor:
        """Hidden states [B, L, D] of whole sequences from position 0, without a cache."""
        batch, length = tokens_BL.shape
        positions_N = torch.arange(length, device=tokens_BL.device).repeat(batch)
        hidden_ND = self.forward(tokens_BL.flatten(), positions_N, full_attention(batch))
        return hidden_ND.view(batch, length, -1)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of the chosen hidden states [N, D]: the costliest GEMM, so pass only those needed."""
        if self.lm_head is None:
            return self.group.all_gather(linear(hidden_ND, self.embed_tokens.weight))
        logits_NV: Tensor = self.lm_head(hidden_ND)
        return self.group.all_gather(logits_NV)


def full_attention(batch: int) -> Attend:
    """Causal attention within each of `batch` sequences of equal length, all tokens at hand."""

    def attend(_: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        q_BHLE, k_BKLE, v_BKLE = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q_NHE, k_NKE, v_NKE))
        gqa = q_NHE.shape[1] != k_NKE.shape[1]
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BKLE, v_BKLE, is_causal=True, enable_gqa=gqa)
        return out_BHLE.transpose(1, 2).flatten(0, 1)

    return attend
