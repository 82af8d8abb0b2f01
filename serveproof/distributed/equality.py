"""What one rank computes, several must compute too: logits, a layer of experts, and every step of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from serveproof.bench import engine_load
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import RankedCase
from serveproof.engine.config import Experts, ModelConfig, parse_config
from serveproof.engine.expert_parallel import dispatched, experts_one_by_one
from serveproof.engine.loader import random_model
from serveproof.engine.model import Llama
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.moe import SparseMLP
from serveproof.engine.parallel import SINGLE
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with

# float32 sums in another order, through a few layers; corrupted logits are off by some tenths
BOUND = 1e-4
FIELDS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16, "vocab_size": 512, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}  # fmt: skip
SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def config_for(world: int, experts: bool = False) -> ModelConfig:
    """A small model whose heads, widths and words divide by so many ranks."""

    def shared(count: int) -> int:
        return -(-count // world) * world

    config = parse_config(FIELDS | {name: shared(FIELDS[name]) for name in SHARED})
    if not experts:
        return config
    return replace(config, qk_norm=True, experts=Experts(shared(8), 2, shared(64), True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; infinite for what is not finite or has another shape."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _case(ranks: Ranks, name: str, axes: dict[str, Any], error: float, control: float, what: str) -> RankedCase:
    """Passed where every rank's error is within the bound, and every rank's check rejects the corrupted output."""
    errors, controls = ranks.gathered(error), ranks.gathered(control)
    if min(controls) <= BOUND:
        return RankedCase(name, axes, "failed", "the check accepts an output without a rank's part")
    worst = max(range(ranks.world), key=lambda rank: errors[rank])
    if not errors[worst] <= BOUND:
        reason = f"rank {worst}: relative error {errors[worst]:.3g} against one rank, bound {BOUND:g}"
        return RankedCase(name, axes, "failed", reason)
    return RankedCase(name, axes, "passed", f"{what}: relative error at most {errors[worst]:.2g}, bound {BOUND:g}")


@torch.inference_mode()
def tensor_parallel_logits(ranks: Ranks, config: ModelConfig, seed: int = 11) -> RankedCase:
    """Logits of random tokens through the ranks' shares, against the whole model on each rank, in float32."""
    axes = {"hidden": config.hidden_size, "layers": config.num_hidden_layers, "ranks": ranks.world}
    if ranks.world == 1:
        return RankedCase("tensor_parallel_logits", axes, "skipped", "one rank has nothing to share")
    shared = ranks.together(lambda: random_model(config, seed, torch.float32, ranks.device, ranks.group))
    whole = random_model(config, seed, torch.float32, ranks.device, SINGLE)
    generator = torch.Generator().manual_seed(seed)
    tokens_BL = torch.randint(config.vocab_size, (2, 48), generator=generator).to(ranks.device)
    found = shared.logits(shared.full(tokens_BL).flatten(0, 1))
    expected = whole.logits(whole.full(tokens_BL).flatten(0, 1))
    # the control: one rank's share of the last down projection left out
    down = shared.layers[-1].mlp.down_proj  # type: ignore[union-attr]
    if ranks.rank == ranks.world - 1:
        down.weight.data.zero_()  # type: ignore[operator, union-attr]
    corrupted = shared.logits(shared.full(tokens_BL).flatten(0, 1))
    return _case(
        ranks, "tensor_parallel_logits", axes, relative_error(found, expected), relative_error(corrupted, expected),
        "logits of 96 tokens",
    )  # fmt: skip


@torch.inference_mode()
def expert_parallel_layer(ranks: Ranks, config: ModelConfig, seed: int = 12) -> RankedCase:
    """A layer of experts by all-to-all, other tokens on each rank, against all experts on each rank, in float32."""
    assert config.experts is not None  # noqa: S101 (told to mypy)
    axes = {"experts": config.experts.count, "per_token": config.experts.per_token, "ranks": ranks.world}
    if ranks.world == 1:
        return RankedCase("expert_parallel_layer", axes, "skipped", "one rank holds every expert")
    layer = ranks.together(lambda: whole_experts(config, seed, ranks.device))
    share = config.experts.count // ranks.world
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    # another count on each rank, and on rank 0 none at all where there are more than two
    tokens = 37 + 5 * ranks.rank if ranks.rank or ranks.world < 3 else 0
    generator = torch.Generator().manual_seed(seed + ranks.rank)
    x_ND = torch.randn(tokens, config.hidden_size, generator=generator).to(ranks.device)
    gates_NC, ids_NC = layer.route(x_ND)
    found = dispatched(
        x_ND, gates_NC, ids_NC, layer.gate_up[mine], layer.down[mine], ranks.group, batching=experts_one_by_one
    )
    expected = layer(x_ND)
    silent = layer.down[mine].clone()
    if ranks.rank == ranks.world - 1:
        silent.zero_()
    corrupted = dispatched(
        x_ND, gates_NC, ids_NC, layer.gate_up[mine], silent, ranks.group, batching=experts_one_by_one
    )
    # a rank without tokens has nothing to be wrong in
    error, control = 0.0, float("inf")
    if tokens:
        error, control = relative_error(found, expected), relative_error(corrupted, expected)
    return _case(ranks, "expert_parallel_layer", axes, error, control, "every rank's tokens")


def whole_experts(
    config: ModelConfig, seed: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> SparseMLP:
    """A layer with all its experts and seeded weights."""
    assert config.experts is not None  # noqa: S101 (told to mypy)
    with torch.device("meta"):
        blank = SparseMLP(config.hidden_size, config.experts, SINGLE)
    generator = torch.Generator(device=device).manual_seed(seed)
    state = {
        name: torch.randn(one.shape, generator=generator, device=device, dtype=dtype) * one.shape[-1] ** -0.5
        for name, one in blank.state_dict().items()
    }
    blank.load_state_dict(state, assign=True)
    return blank.requires_grad_(False).eval()


def differing(hashes: list[list[str]]) -> str:
    """'' when every rank has the same list; else the first step that differs and on which rank."""
    for step in range(max(map(len, hashes))):
        found = [one[step] if step < len(one) else "nothing" for one in hashes]
        other = next((rank for rank, value in enumerate(found) if value != found[0]), None)
        if other is not None:
            return f"step {step}: rank {other} has {found[other]}, rank 0 has {found[0]}"
    return ""


def hashing(model: Llama, into: list[str]) -> Callable[[], None]:
    """Keep a hash of the bits of every step's hidden states and logits; returns what undoes it."""
    inner = model.logits

    def logits(hidden_ND: Tensor) -> Tensor:
        out_NV = inner(hidden_ND)
        bits = b"".join(x.detach().float().cpu().numpy().tobytes() for x in (hidden_ND, out_NV))
        into.append(hashlib.blake2b(bits, digest_size=8).hexdigest())
        return out_NV

    model.logits = logits  # type: ignore[method-assign]
    return lambda: delattr(model, "logits")


def equal_steps(ranks: Ranks, config: ModelConfig, name: str, expert_parallel: bool = False) -> RankedCase:
    """Requests through the engine on all ranks: the bits of every step's logits alike, and one rank's tokens."""
    axes = {"hidden": config.hidden_size, "layers": config.num_hidden_layers, "ranks": ranks.world, "requests": 5}
    if ranks.world == 1:
        return RankedCase(name, axes, "skipped", "one rank has nobody to agree with")
    settings = Settings(
        dtype="fp32", device=ranks.device.type, max_running=4, token_budget=32, max_model_len=96, fused=False,
        graphs=False,
    )  # fmt: skip
    load = engine_load.make_load(5, (3, 40), (6, 6), config.vocab_size, seed=9)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    group = replace(ranks.group, expert_parallel=expert_parallel)
    model = ranks.together(lambda: random_model(config, 13, torch.float32, ranks.device, group))
    hashes: list[str] = []
    undo = hashing(model, hashes)
    engine = start_with(model, settings)
    tokens = [done.tokens for done in engine.generate(load.prompts, params)]
    undo()
    assert isinstance(engine.runner, ModelRunner)  # noqa: S101 (told to mypy)
    alone = start_with(random_model(config, 13, torch.float32, ranks.device, SINGLE), settings)
    expected = [done.tokens for done in alone.generate(load.prompts, params)]
    everyone = ranks.gathered((hashes, tokens == expected))
    wrong = differing([one for one, _ in everyone])
    other = [rank for rank, (_, equal) in enumerate(everyone) if not equal]
    if wrong or other or not hashes:
        reason = wrong or (f"ranks {other}: other tokens than one rank's" if other else "no step was hashed")
        return RankedCase(name, axes, "failed", reason)
    return RankedCase(name, axes, "passed", f"{len(hashes)} steps, the same bits on {ranks.world} ranks; tokens equal")
