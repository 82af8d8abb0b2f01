"""How to serve, as data: what the server and scripts offer, without torch, which takes over a second to import."""

from __future__ import annotations

from dataclasses import dataclass

from serveproof.errors import UserError

COMPUTE = ("fp32", "bf16", "fp16")
CACHES = (*COMPUTE, "fp8")
WEIGHTS = ("int8", "int4", "fp8")


@dataclass(frozen=True)
class Settings:
    """How to serve. weights: int8, int4 (cpu) or fp8 (cuda), or None for dtype's. fused, graphs: on CUDA only.

    blocks None: enough for max_running sequences of max_model_len tokens, but no more than memory_share of the free
    memory holds on CUDA, and 4 GiB on a CPU. max_model_len None: the model's, or what such a cache holds. overlap
    None: on CUDA, where a step is launched and not waited for; on a CPU it would only hold every token back by a step.
    """

    dtype: str = "bf16"
    weights: str | None = None
    cache_dtype: str | None = None
    device: str = "cpu"
    page_size: int = 16
    blocks: int | None = None
    host_blocks: int = 0
    memory_share: float = 0.85
    max_running: int = 16
    token_budget: int = 512
    max_model_len: int | None = None
    chunked: bool = True
    drafts: int = 0
    policy: str = "first_come"
    prefix_caching: bool = True
    overlap: bool | None = None
    compile_block: bool = False
    fused: bool = True
    graphs: bool = True

    def __post_init__(self) -> None:
        """Raise UserError naming the setting that can't be."""
        if self.dtype not in COMPUTE:
            raise UserError(f"dtype is {self.dtype!r}; it can be {', '.join(COMPUTE)}")
        if self.weights not in (None, *WEIGHTS):
            raise UserError(f"weights is {self.weights!r}; it can be {', '.join(WEIGHTS)}, or left out")
        if self.cache_dtype not in (None, *CACHES):
            raise UserError(f"cache_dtype is {self.cache_dtype!r}; it can be {', '.join(CACHES)}")
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise UserError(f"page_size is {self.page_size}; it must be a power of two")
        if self.blocks is not None and self.blocks < 2:
            raise UserError(f"blocks is {self.blocks}; it must be 2 at least, for block 0 is padding's")
