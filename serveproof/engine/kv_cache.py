"""The KV cache's memory: one pool of blocks for all layers on the device, and one on the host for swapped sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serveproof.engine.model import Llama, full_attention
from serveproof.engine.settings import CACHES
from serveproof.errors import UserError
from serveproof.ops.quantize import E4M3_MAX

DTYPES = dict(zip(CACHES, (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn), strict=True))
# A cache value larger than those of the calibrating text is cut off: this leaves room for twice as large ones.
HEADROOM = 2.0


@dataclass
class KVCache:
    """pool: [layers, 2 (k, v), blocks, page_size, K, E]; host: [host blocks, layers, 2, page_size, K, E], pinned.

    scales: float32 [layers, 2, K] of an e4m3 cache, else None: a stored value times its scale is the value.
    """

    pool: Tensor
    host: Tensor
    scales: Tensor | None = None

    @property
    def page_size(self) -> int:
        return self.pool.shape[3]

    @property
    def blocks(self) -> int:
        return self.pool.shape[2]

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values by slot, [blocks * page_size, K, E] each."""
        k_SKE, v_SKE = self.pool[layer].flatten(1, 2)
        return k_SKE, v_SKE

    def scales_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """An e4m3 cache's scales of a layer's keys and values, [K] each."""
        return None if self.scales is None else (self.scales[layer, 0], self.scales[layer, 1])

    def write(self, layer: int, slots_N: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> None:
        """Store the keys and values of N tokens; a slot is block * page_size + offset."""
        for which, (flat_SKE, x_NKE) in enumerate(zip(self.rows(layer), (k_NKE, v_NKE), strict=True)):
            if self.scales is None:
                flat_SKE.index_copy_(0, slots_N, x_NKE.to(flat_SKE.dtype))
            else:
                scaled_NKE = (x_NKE / self.scales[layer, which][:, None]).clamp(-E4M3_MAX, E4M3_MAX)
                raw_NKE = scaled_NKE.to(self.pool.dtype).view(torch.uint8)
                flat_SKE.view(torch.uint8).index_copy_(0, slots_N, raw_NKE)

    def read(self, layer: int, pages_M: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of whole pages, [M, page_size, K, E] each, in `dtype`."""
        if self.scales is None:
            found_2MPKE = self.pool[layer].index_select(1, pages_M).to(dtype)
        else:
            raw_2MPKE = self.pool[layer].view(torch.uint8).index_select(1, pages_M).view(self.pool.dtype)
            found_2MPKE = raw_2MPKE.to(dtype) * self.scales[layer].to(dtype)[:, None, None, :, None]
        return found_2MPKE[0], found_2MPKE[1]

    def clean(self, blocks: Sequence[int]) -> None:
        """Zero blocks: a NaN that a failed request left would spread to the next owner, even through masks."""
        for block in blocks:
            self.pool[:, :, block].view(torch.uint8).zero_()

    def swap(self, out: Iterable[tuple[int, int]], back: Iterable[tuple[int, int]]) -> None:
        """Copy (device block, host block) pairs out, then (host block, device block) pairs back, in stream order."""
        for block, host in out:
            self.host[host].copy_(self.pool[:, :, block], non_blocking=True)
        for host, block in back:
            self.pool[:, :, block].copy_(self.host[host], non_blocking=True)


def block_bytes(model: Llama, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, of a rank's KV heads."""
    config, kv_heads = model.config, model.group.share(model.config.num_key_value_heads)
    return config.num_hidden_layers * 2 * page_size * kv_heads * config.head_dim * dtype.itemsize


def make_cache(
    model: Llama, blocks: int, page_size: int, dtype: torch.dtype, host_blocks: int = 0, device: str = "cpu"
) -> KVCache:
    """Allocate. UserError when the device has not enough memory: it says for how many blocks there would be room."""
    config, kv_heads = model.config, model.group.share(model.config.num_key_value_heads)
    shape = (config.num_hidden_layers, 2, blocks, page_size, kv_heads, config.head_dim)
    each = block_bytes(model, page_size, dtype)
    try:
        pool = torch.zeros(shape, dtype=dtype, device=device)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "memory" not in str(error):
            raise
        room = f"; there is room for {torch.cuda.mem_get_info()[0] // each} blocks" if device == "cuda" else ""
        raise UserError(
            f"no memory for a cache of {blocks} blocks of {page_size} tokens ({blocks * each / 2**30:.1f} GiB){room}; "
            "ask for fewer blocks, or for an fp8 cache, which takes half of bf16's"
        ) from None
    host = torch.zeros((host_blocks, config.num_hidden_layers, 2, *shape[3:]), dtype=dtype, pin_memory=device == "cuda")
    return KVCache(pool, host)


def blocks_for(free_bytes: int, model: Llama, page_size: int, dtype: torch.dtype) -> int:
    """How many blocks fit into so many bytes. UserError where not even two do: block 0 is padding's."""
    each = block_bytes(model, page_size, dtype)
    if free_bytes < 2 * each:
        raise UserError(
            f"{free_bytes / 2**20:.0f} MiB are left for the cache, a block takes {each / 2**20:.1f} MiB; "
            "use a smaller model, fewer CUDA graphs or a smaller page_size"
        )
    return free_bytes // each


@torch.inference_mode()
def calibrate(cache: KVCache, model: Llama, tokens_L: Tensor) -> None:
    """Give an e4m3 cache its scales, a head and layer each: HEADROOM times the largest magnitude over a text."""
    heads = (cache.pool.shape[0], 2, cache.pool.shape[4])
    largest = torch.zeros(heads, device=cache.pool.device)
    inner = full_attention(1)

    def attend(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        for which, x_NKE in enumerate((k_NKE, v_NKE)):
            largest[layer, which] = x_NKE.abs().amax(dim=(0, 2)).float()
        return inner(layer, q_NHE, k_NKE, v_NKE)

    model(tokens_L, torch.arange(len(tokens_L), device=tokens_L.device), attend)
    cache.scales = (HEADROOM * largest / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
