"""Puts an engine together from its settings: model, cache, runner, CUDA graphs, scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from serveproof.engine.block_manager import BlockManager
from serveproof.engine.cuda_graphs import capture_decodes
from serveproof.engine.engine import Engine
from serveproof.engine.kv_cache import DTYPES, blocks_for, calibrate, make_cache
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_model
from serveproof.engine.model import Llama
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.output import load_tokenizer
from serveproof.engine.scheduler import Limits
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.errors import UserError

CALIBRATION_TOKENS = 512
GPU_HEAD_DIMS = (16, 32, 64, 128, 256)  # what serveproof.ops.paged_decode's tiles take
CPU_CACHE_BYTES = 4 * 2**30  # as vLLM's VLLM_CPU_KVCACHE_SPACE: a host's free memory is not the cache's alone


def start(directory: Path | str, settings: Settings, say: Callable[[str], object] = lambda _: None) -> Engine:
    """The engine of a model directory, ready to serve, with its tokenizer."""
    model = load_model(directory, DTYPES[settings.dtype], settings.device)
    prepare_(model, settings.weights)
    return start_with(model, settings, load_tokenizer(directory), say)


def start_with(
    model: Llama,
    settings: Settings,
    tokenizer: Tokenizer | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Engine:
    """The engine of a model at hand. UserError for settings that can't be served, before the cache is allocated."""
    longest = settings.max_model_len or model.config.max_position_embeddings
    if longest > model.config.max_position_embeddings:
        raise UserError(f"max_model_len {longest} is more than the model's {model.config.max_position_embeddings}")
    on_cuda, dtype = settings.device == "cuda", DTYPES[settings.cache_dtype or settings.dtype]
    if on_cuda and model.config.head_dim not in GPU_HEAD_DIMS:
        raise UserError(
            f"the model's head_dim is {model.config.head_dim}; attention on a GPU takes "
            f"{', '.join(map(str, GPU_HEAD_DIMS))}: serve this model on a CPU"
        )
    blocks = settings.blocks or _blocks(model, settings, longest, dtype)
    if settings.blocks is None and settings.max_model_len is None:
        longest = min(longest, (blocks - 1) * settings.page_size)  # what it offers can be served
    limits = Limits(
        settings.max_running,
        settings.token_budget,
        longest,
        settings.chunked,
        swap=settings.host_blocks > 0,
        drafts=settings.drafts,
    )
    cache = make_cache(model, blocks, settings.page_size, dtype, settings.host_blocks, settings.device)
    if dtype == torch.float8_e4m3fn:
        generator = torch.Generator().manual_seed(0)
        count = min(CALIBRATION_TOKENS, longest)
        tokens_L = torch.randint(model.config.vocab_size, (count,), generator=generator)
        calibrate(cache, model, tokens_L.to(settings.device))
    runner = ModelRunner(
        model, cache, settings.max_running, longest, settings.compile_block, on_cuda and settings.fused
    )
    if on_cuda and settings.graphs:
        runner.decode_graphs = capture_decodes(runner, settings.max_running * (1 + settings.drafts), say)
        if runner.fused is not None:
            from serveproof.engine.mixed_graphs import capture_mixed

            runner.mixed_graphs = capture_mixed(runner, settings.token_budget, say)
    overlap = on_cuda if settings.overlap is None else settings.overlap

    def engine(policy: str, tokenizer: Tokenizer | None) -> Engine:
        manager = BlockManager(blocks, settings.page_size, settings.host_blocks, settings.prefix_caching)
        return Engine(runner, manager, limits, policy, model.config.eos_token_ids, tokenizer, overlap=overlap)

    if on_cuda:
        if runner.attention.prefill is None and dtype.itemsize == 2:
            say("flashinfer is not installed: prompts' attention is computed one after another")
        say("answering two prompts, by which kernels compile")
        warm_up(engine("first_come", None))
    return engine(settings.policy, tokenizer)


def warm_up(engine: Engine) -> None:
    """Answer a prompt of more than a step's tokens and one of one, with an engine that is then thrown away.

    Kernels compile and libraries load at their first use, seconds that the first requests would wait: a fresh server on
    an H100 brought its first 400 tokens in 4 s, and 2,000 to 4,000 a second after that.
    """
    limits, blocks = engine.scheduler.limits, engine.blocks
    most = min(limits.max_model_len, blocks.usable * blocks.page_size) - 2
    longest = min(most, limits.token_budget + 1 if limits.chunked else limits.token_budget)
    for count in sorted({max(longest, 1), 1}):
        engine.add(f"{count} tokens", [0] * count, SamplingParams(max_tokens=2, ignore_eos=True))
    while engine.busy:
        engine.step()


def _blocks(model: Llama, settings: Settings, longest: int, dtype: torch.dtype) -> int:
    """Blocks by what the settings could ask for at once, as far as there is memory."""
    most = settings.max_running * -(-longest // settings.page_size) + 1
    on_cuda = settings.device == "cuda"
    free_bytes = int(torch.cuda.mem_get_info()[0] * settings.memory_share) if on_cuda else CPU_CACHE_BYTES
    # ranks that schedule alike need as many blocks as each other
    return min(most, blocks_for(model.group.least(free_bytes), model, settings.page_size, dtype))
