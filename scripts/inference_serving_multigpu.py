"""The engine over several ranks, tensor parallel: torchrun --nproc-per-node N scripts/inference_serving_multigpu.py

Every rank runs the same schedule on its share of the weights and of the cache. It says what each rank holds, measures
prefill and decode, and with --check holds the tokens against one rank's, in float32. On a CPU the ranks talk through
gloo, on CUDA through NCCL, a GPU each, and in bfloat16 small sums go over symmetric memory where the GPUs map each
other's. Without torchrun it runs as one rank.

Needs a model directory, or a config.json for random weights. Prints a table. Writes its record to --out; without it
nothing. Exit code 1 when the tokens differ.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from serveproof import script
from serveproof.bench import engine_load
from serveproof.distributed import group
from serveproof.distributed.direct import direct_sum
from serveproof.distributed.group import ChecksFailed, Ranks
from serveproof.engine.config import ModelConfig
from serveproof.engine.engine import Completion, Engine
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.model import Llama
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.parallel import SINGLE, Group
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.model_names import find_model, model_name
from serveproof.pairs import ROOT
from serveproof.provenance import collect
from serveproof.results import write
from serveproof.serving_results import RankShare, TensorParallelRecord


def model_of(arguments: argparse.Namespace, device: str, group: Group) -> Llama:
    """The rank's share of the model directory, or of random weights for a config.json or a shape."""
    model = load_or_draw(find_model(arguments.model), arguments.seed, DTYPES[arguments.dtype], device, group)
    prepare_(model, None)
    return model


def share_of(model: Llama, engine: Engine) -> RankShare:
    """What this rank holds."""
    group, config = model.group, model.config
    runner = engine.runner
    return RankShare(
        rank=group.rank,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=sum(parameter.nbytes for parameter in model.parameters()),
        query_heads=group.share(config.num_attention_heads),
        kv_heads=group.share(config.num_key_value_heads),
        vocabulary=(group.rank * model.vocabulary, (group.rank + 1) * model.vocabulary),
        cache_bytes=runner.cache.pool.nbytes if isinstance(runner, ModelRunner) else 0,
    )


def answers(engine: Engine, config: ModelConfig, arguments: argparse.Namespace) -> tuple[list[Completion], float]:
    """The same prompts on every rank, and the seconds that all took."""
    lengths = (max(1, arguments.prompt // 2), arguments.prompt)
    load = engine_load.make_load(arguments.requests, lengths, (1, 1), config.vocab_size, seed=5)
    started = time.perf_counter()
    done = engine.generate(load.prompts, SamplingParams(max_tokens=arguments.tokens, ignore_eos=True))
    return done, time.perf_counter() - started


def gathered(share: RankShare, world: int) -> list[RankShare]:
    """Every rank's share, at every rank."""
    shares: list[RankShare | None] = [None] * world
    if world == 1:
        return [share]
    dist.all_gather_object(shares, share)
    return [one for one in shares if one is not None]


def refuse_what_rounds(arguments: argparse.Namespace) -> None:
    """UserError where tokens would be compared that rounding may tell apart."""
    if arguments.check and arguments.dtype != "fp32":
        raise UserError(
            f"--check compares tokens: in {arguments.dtype} another order of sums may flip one; use --dtype fp32"
        )


def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    ranks.together(lambda: refuse_what_rounds(arguments))
    device = ranks.device.type
    direct, how = direct_sum(ranks, DTYPES[arguments.dtype])
    shared = replace(ranks.group, direct=direct)
    if shared.rank == 0 and shared.world > 1:
        script.say(arguments.log, how)
    settings = Settings(
        dtype=arguments.dtype,
        device=device,
        max_running=arguments.requests,
        token_budget=max(arguments.requests, 2048),
        max_model_len=max(arguments.prefill + 1, arguments.prompt + arguments.tokens),
        prefix_caching=False,
    )
    model = ranks.together(lambda: model_of(arguments, device, shared))
    config = model.config
    engine = start_with(model, settings)
    shares = gathered(share_of(model, engine), shared.world)
    if shared.rank == 0:
        for share in shares:
            begin, end = share.vocabulary
            script.say(
                arguments.log,
                f"rank {share.rank} of {shared.world}: {share.parameters / 1e6:.1f} M parameters, "
                f"{share.bytes / 2**20:.0f} MiB, {share.query_heads} query and {share.kv_heads} KV heads, "
                f"words {begin} to {end - 1}, cache {share.cache_bytes / 2**20:.0f} MiB",
            )
    answers(engine, config, arguments)
    done, seconds = answers(engine, config, arguments)
    engine_load.prefill_s(engine, arguments.prefill, config.vocab_size, seed=2)
    prefill_s = engine_load.prefill_s(engine, arguments.prefill, config.vocab_size, seed=3)
    token_ms = engine_load.token_ms(engine, 16, 24, config.vocab_size)
    equal = None
    if arguments.check and shared.rank == 0:
        alone = start_with(model_of(arguments, device, SINGLE), settings)
        expected, _ = answers(alone, config, arguments)
        equal = [one.tokens for one in expected] == [one.tokens for one in done]
    # one rank computes alone meanwhile: the others wait for as long as it takes, not for a collective's limit
    equal = ranks.from_first(equal)
    if shared.rank == 0:
        record = TensorParallelRecord(
            hardware=arguments.key,
            world=shared.world,
            backend=ranks.backend if shared.world > 1 else "none",
            model=model_name(find_model(arguments.model)),
            dtype=arguments.dtype,
            shares=shares,
            requests=arguments.requests,
            prefill_tokens=arguments.prefill,
            prefill_s=prefill_s,
            token_ms=token_ms,
            output_tokens_per_s=arguments.requests * arguments.tokens / seconds,
            equal=equal,
            provenance=collect(ROOT),
        )
        print(
            f"{shared.world} ranks: prefill of {arguments.prefill} tokens {1e3 * prefill_s:.1f} ms, {token_ms:.2f} ms "
            f"a token alone, {record.output_tokens_per_s:.0f} output tokens/s at {arguments.requests} requests; "
            f"{'not checked' if equal is None else 'equal to one rank' if equal else 'NOT EQUAL to one rank'}"
        )
        if arguments.out:
            write(arguments.out, record)
    if equal is False:
        raise ChecksFailed("the tokens differ from one rank's; see the record")


def main() -> None:
    parser = script.engine_parser(__doc__ or "", COMPUTE, "fp32")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=48, help="tokens of the longest prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate for each request")
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all ranks together")
    parser.add_argument("--check", action="store_true", help="rank 0 computes the same alone and compares the tokens")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    group.run(work, arguments, device_of(arguments.key))


if __name__ == "__main__":
    main()
