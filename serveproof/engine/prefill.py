"""Pieces of prompts by flashinfer's paged prefill (arXiv 2501.01005): all pieces of a step in one call a layer.

Its first use compiles for a minute. Without flashinfer, or with an e4m3 cache (whose scales are a head's, where
flashinfer takes one for all), serveproof.engine.attention computes the pieces one by one through SDPA.
"""

from __future__ import annotations

import importlib.util
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from serveproof.engine.kv_cache import KVCache

WORKSPACE_BYTES = 256 * 2**20


def available(cache: KVCache) -> bool:
    """Whether flashinfer is there and takes this cache."""
    return cache.pool.is_cuda and cache.pool.dtype.itemsize == 2 and importlib.util.find_spec("flashinfer") is not None


class PagedPrefill:
    """One wrapper and its workspace, planned once a step for all layers."""

    def __init__(self, cache: KVCache, heads: int) -> None:
        import flashinfer

        self.cache, self.heads = cache, heads
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=cache.pool.device)
        self.wrapper: Any = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="auto")
        self.planned = torch.cuda.Event()

    def plan(self, counts: list[int], contexts: list[int], pages_M: Tensor) -> None:
        """counts: rows of each piece; contexts: tokens that its last row sees; pages_M: their block tables, int32, one
        after the other."""
        # The plan before may still be on its way out of the pinned memory that this one overwrites.
        self.planned.synchronize()
        page = self.cache.page_size
        kv_heads, head_dim = self.cache.pool.shape[-2:]
        self.wrapper.plan(
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            torch.tensor([0, *accumulate(-(-context // page) for context in contexts)], dtype=torch.int32),
            pages_M,
            torch.tensor([(context - 1) % page + 1 for context in contexts], dtype=torch.int32),
            self.heads,
            kv_heads,
            head_dim,
            page,
            causal=True,
            q_data_type=self.cache.pool.dtype,
            kv_data_type=self.cache.pool.dtype,
        )
        self.planned.record()

    def __call__(self, layer: int, q_NHE: Tensor, out_NHE: Tensor | None = None) -> Tensor:
        """Attention of all pieces' rows, in the order of the plan, into `out` (contiguous) where that is given."""
        k_NPHD, v_NPHD = self.cache.pool[layer]
        result_NHE: Tensor = self.wrapper.run(q_NHE, (k_NPHD, v_NPHD), out=out_NHE)
        return result_NHE
