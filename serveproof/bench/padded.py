"""Static batching over one padded cache: what the ladder of optimizations starts from.

A batch's prompts are padded to the longest, its cache to the longest sequence, and it decodes until the last one is
done. Attention by plain matrix products, or by SDPA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serveproof.engine.model import Llama


class PaddedCache:
    """Keys and values [layers, 2, B, S, K, E] of one batch; `attend` is the model's attention over them."""

    def __init__(self, model: Llama, batch: int, longest: int, sdpa: bool) -> None:
        config, weight = model.config, model.embed_tokens.weight
        shape = (config.num_hidden_layers, 2, batch, longest, config.num_key_value_heads, config.head_dim)
        self.pool = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.sdpa = sdpa
        self.positions_BL: Tensor

    def attend(self, layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        """Write this step's keys and values at their positions, attend over all positions up to each token's own."""
        batch, length = self.positions_BL.shape
        rows_B1 = torch.arange(batch, device=q_NHE.device)[:, None]
        for which, x_NKE in enumerate((k_NKE, v_NKE)):
            self.pool[layer, which, rows_B1, self.positions_BL] = x_NKE.unflatten(0, (batch, length))
        k_BKSE, v_BKSE = (x.transpose(1, 2) for x in self.pool[layer])
        q_BHLE = q_NHE.unflatten(0, (batch, length)).transpose(1, 2)
        places_S = torch.arange(k_BKSE.shape[2], device=q_NHE.device)
        seen_B1LS = (places_S <= self.positions_BL[..., None])[:, None]
        if self.sdpa:
            out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BKSE, v_BKSE, attn_mask=seen_B1LS, enable_gqa=True)
        else:
            group = q_BHLE.shape[1] // k_BKSE.shape[1]
            k_BHSE, v_BHSE = (x.repeat_interleave(group, 1) for x in (k_BKSE, v_BKSE))
            scores_BHLS = q_BHLE @ k_BHSE.transpose(-1, -2) * q_BHLE.shape[-1] ** -0.5
            out_BHLE = scores_BHLS.masked_fill(~seen_B1LS, float("-inf")).softmax(-1) @ v_BHSE
        return out_BHLE.transpose(1, 2).flatten(0, 1)


@torch.inference_mode()
def generate(model: Llama, prompts: list[list[int]], outputs: list[int], batch: int, sdpa: bool) -> list[list[int]]:
    """Greedy tokens of each prompt, `batch` at a time; each answer is cut at the length asked for."""
    answers = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        answers += _batch(model, prompts[part], outputs[part], sdpa)
    return answers


def _batch(model: Llama, prompts: list[list[int]], outputs: list[int], sdpa: bool) -> list[list[int]]:
    device = model.embed_tokens.weight.device
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    cache = PaddedCache(model, len(prompts), longest + max(outputs), sdpa)
    padded_BL = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        padded_BL[row, : len(prompt)] = torch.tensor(prompt, device=device)
    cache.positions_BL = torch.arange(longest, device=device).expand(len(prompts), -1)
    hidden_BLD = model(padded_BL.flatten(), cache.positions_BL.flatten(), cache.attend).unflatten(0, padded_BL.shape)
    last_B = hidden_BLD[torch.arange(len(prompts)), lengths_B - 1]
    columns = [model.logits(last_B).argmax(-1)]
    for step in range(max(outputs) - 1):
        # what padding wrote past a prompt is overwritten before it is seen
        cache.positions_BL = (lengths_B + step)[:, None]
        hidden_BD = model(columns[-1], cache.positions_BL.flatten(), cache.attend)
        columns.append(model.logits(hidden_BD).argmax(-1))
    rows: list[list[int]] = torch.stack(columns, dim=1).tolist()
    return [row[:count] for row, count in zip(rows, outputs, strict=True)]
