"""Decode attention over one contiguous KV cache, padded to the longest sequence, with a mask.

What an engine without pages does: every sequence reserves the longest one's length. Lengths are long-tailed, as
production traffic's are (lognormal; BurstGPT, arXiv 2401.17644, and the Azure traces show such tails), so most of the
cache is padding that attention reads anyway.

axes: batch, q_heads, kv_heads, head_dim, page_size, max_len, median_len, dtype; optional lengths
(long_tailed or uniform: then there is no padding to save).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from serveproof.ops import paging

READS = ("q_BHD", "k_cache_BSHD", "v_cache_BSHD", "lengths_B")


def make_inputs(axes, device, seed):
    """The same keys and values twice, padded and in pages (serveproof.ops.paging); each side reads its own only."""
    return paging.paged_inputs(axes, device, seed)


def reference(inputs):
    """Softmax attention sequence by sequence over the valid tokens alone, float64 on a CPU, float32 on CUDA."""
    lengths = inputs["lengths_B"].tolist()
    return paging.attend_each(inputs["q_BHD"], inputs["k_cache_BSHD"], inputs["v_cache_BSHD"], lengths)


def work(axes):
    """Valid tokens only: 4 QH D FLOPs a token, and its key and value read once; q read and out written."""
    tokens = int(paging.draw_lengths(axes).sum())
    itemsize = getattr(torch, axes["dtype"]).itemsize
    return {
        "flops": 4 * tokens * axes["q_heads"] * axes["head_dim"],
        "bytes": (2 * tokens * axes["kv_heads"] + 2 * axes["batch"] * axes["q_heads"]) * axes["head_dim"] * itemsize,
        "dtype": axes["dtype"],
        "items": axes["batch"],
        "item": "token",
    }


def metrics(inputs):
    """KV-cache bytes reserved and used, and the share reserved for nothing."""
    cache = inputs["k_cache_BSHD"]
    per_token = 2 * cache.shape[2] * cache.shape[3] * cache.element_size()
    used = int(inputs["lengths_B"].sum())
    return paging.kv_metrics(cache.shape[0] * cache.shape[1], used, per_token, "batch x longest sequence")


def build(inputs):
    """SDPA over the padded cache; the boolean mask is made once a step, as all layers share it."""
    q_BHD, k_BSHD, v_BSHD = inputs["q_BHD"], inputs["k_cache_BSHD"], inputs["v_cache_BSHD"]
    positions_S = torch.arange(k_BSHD.shape[1], device=q_BHD.device)
    mask_B11S = (positions_S[None] < inputs["lengths_B"][:, None])[:, None, None, :]

    def run():
        out_BH1D = F.scaled_dot_product_attention(
            q_BHD[:, :, None],
            k_BSHD.transpose(1, 2),
            v_BSHD.transpose(1, 2),
            attn_mask=mask_B11S,
            enable_gqa=True,
        )
        return out_BH1D[:, :, 0]

    run.backend = "sdpa over a padded cache"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
