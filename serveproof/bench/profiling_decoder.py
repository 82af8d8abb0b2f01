"""One profiling process for a decoder: prefill and decode of a model's shape over batches and contexts.

The engine's own forward pass with random weights, without graphs and without compiling: what every operation costs, and
what would pay. The cache here is one tensor a layer, as long as the context: pages are a pair of their own.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from serveproof.bench import profiling_minimal, verification
from serveproof.bench.profiling_job import DecoderJob, DecoderReply
from serveproof.engine.config import ModelConfig, read_config
from serveproof.engine.loader import random_model
from serveproof.engine.model import Attend, Llama, full_attention
from serveproof.errors import UserError
from serveproof.hardware.start import start_torch
from serveproof.nvtx_ranges import ranged
from serveproof.orphans import die_with_parent
from serveproof.profile_records import DecoderPoint, Profile

PHASES: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")


def check(config: ModelConfig, batches: list[int], contexts: list[int], where: str) -> None:
    """UserError for what the model can't do, before anything is allocated."""
    longest = config.max_position_embeddings
    for context in contexts:
        if context + 1 > longest:
            raise UserError(f"{where}: the model has {longest} positions; --context {context} and one more don't fit")
    if not batches or not contexts:
        raise UserError("--batch and --context: give at least one number each")


def cached_attention(config: ModelConfig, batch: int, context: int, dtype: torch.dtype, device: str) -> Attend:
    """An attend for one new token a sequence after `context` others, whose keys and values are random."""
    shape = (batch, config.num_key_value_heads, context + 1, config.head_dim)
    layers = range(config.num_hidden_layers)
    caches = [tuple(torch.randn(shape, device=device).to(dtype) for _ in "kv") for _ in layers]

    def attend(layer: int, q_BHE: Tensor, k_BKE: Tensor, v_BKE: Tensor) -> Tensor:
        k_BKSE, v_BKSE = caches[layer]
        k_BKSE[:, :, context] = k_BKE
        v_BKSE[:, :, context] = v_BKE
        gqa = q_BHE.shape[1] != k_BKE.shape[1]
        return F.scaled_dot_product_attention(q_BHE[:, :, None], k_BKSE, v_BKSE, enable_gqa=gqa)[:, :, 0]

    return attend


def step(decoder: Llama, phase: str, batch: int, context: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """A closure of one whole step, from token ids to the last tokens' logits."""
    config = decoder.config
    length = context if phase == "prefill" else 1
    generator = torch.Generator(device).manual_seed(batch * context)
    tokens_N = torch.randint(config.vocab_size, (batch * length,), generator=generator, device=device)
    if phase == "prefill":
        attend = full_attention(batch)
        positions_N = torch.arange(context, device=device).repeat(batch)
    else:
        attend = cached_attention(config, batch, context, dtype, device)
        positions_N = torch.full((batch,), context, device=device)
    attend = ranged("attention", attend)
    last_B = torch.arange(1, batch + 1, device=device) * length - 1

    def run() -> Tensor:
        with torch.inference_mode():
            hidden_ND = decoder(tokens_N, positions_N, attend)
            logits_BV: Tensor = decoder.logits(hidden_ND[last_B])
        return logits_BV

    return ranged(phase, run)


def points(job: DecoderJob, decoder: Llama, dtype: torch.dtype) -> Iterator[DecoderPoint]:
    """Every point of the sweep; what doesn't fit is its status and stops no other."""
    for phase in PHASES:
        for batch in job.batches:
            for context in job.contexts:
                try:
                    out = Path(job.traces) / f"{phase}_b{batch}_s{context}.json.gz" if job.traces else None
                    run = step(decoder, phase, batch, context, dtype, job.device)
                    found = profiling_minimal.profile(run, job.device, job.ceilings, out, job.trace_bytes)
                    found.backend = "the engine's forward pass, eager"
                except Exception as error:
                    found = Profile(*verification.outcome_of(error))
                tokens = batch * (context if phase == "prefill" else 1)
                yield DecoderPoint(phase, batch, context, tokens, found)


def main() -> None:
    """python -m serveproof.bench.profiling_decoder JOB.json REPLY.json"""
    die_with_parent()
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=DecoderJob)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start_torch(job.device, job.threads)
    config, dtype = read_config(job.model), getattr(torch, job.dtype)
    check(config, job.batches, job.contexts, job.model)
    decoder = random_model(config, 0, dtype, job.device)
    parameters = sum(one.numel() for one in decoder.parameters())
    reply = DecoderReply(parameters, list(points(job, decoder, dtype)))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
