"""KV hand-over from a prefill worker to a decode worker, against computing the prompt again at the decode worker.

Ranks in pairs: even ranks prefill, odd ranks decode. Pages of the engine's own cache travel over symmetric memory, NCCL
or gloo. The tokens must be those that the decode worker gives by itself; one more hand-over is corrupted on purpose,
and its checksums must tell.

Needs an even number of ranks, started by scripts/start_ranks.py. Writes a RankedRecord to --out; without it nothing.
Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.distributed as dist

from serveproof.bench import engine_load
from serveproof.bench.statistics import estimate_positive, scaled
from serveproof.distributed import exchange, group, hand_over, pages, record
from serveproof.distributed.group import Ranks
from serveproof.distributed.hand_over import Trial
from serveproof.distributed_records import HandOverPoint, RankedCase, RankedFigure
from serveproof.engine.engine import Engine
from serveproof.engine.kv_cache import DTYPES
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_or_draw
from serveproof.engine.settings import COMPUTE, Settings
from serveproof.engine.start import start_with
from serveproof.errors import UserError
from serveproof.model_names import find_model, model_name

NAME = "disaggregated_serving"


def started(arguments: argparse.Namespace, ranks: Ranks) -> Engine:
    """The whole model on each rank: prompts in pieces of the token budget, prefixes found again."""
    if ranks.world % 2:
        raise UserError(f"{ranks.world} ranks: a prefill and a decode worker make a pair; start an even number")
    model = load_or_draw(find_model(arguments.model), arguments.seed, DTYPES[arguments.dtype], ranks.device)
    prepare_(model, None)
    longest = max(arguments.prompts)
    settings = Settings(
        dtype=arguments.dtype, device=ranks.device.type, max_running=2, token_budget=max(longest, 16),
        max_model_len=longest + arguments.tokens,
    )  # fmt: skip
    return start_with(model, settings)


def trials(arguments: argparse.Namespace, ranks: Ranks, engine: Engine, slots: exchange.Exchange) -> list[list[Trial]]:
    """Of each prompt length, `runs` prompts after a warm-up; empty at a prefill worker."""
    found = []
    for length in arguments.prompts:
        seeds = range(1000 * length, 1000 * length + arguments.runs + 1)
        own = [one for seed in seeds if (one := trial(arguments, ranks, engine, slots, length, seed)) is not None]
        found.append(own[1:])
    return found


def trial(
    arguments: argparse.Namespace, ranks: Ranks, engine: Engine, slots: exchange.Exchange, length: int, seed: int,
    corrupt: bool = False,
) -> Trial | None:  # fmt: skip
    """One prompt handed over; None at a prefill worker."""
    prompt = engine_load.make_load(1, (length, length), (1, 1), engine_vocabulary(engine), seed).prompts[0]
    made = None
    if ranks.rank % 2 == 0:
        hand_over.prefill_side(ranks, engine, slots, prompt)
    else:
        made = hand_over.decode_side(ranks, engine, slots, prompt, arguments.tokens, corrupt)
    dist.barrier()
    return made


def engine_vocabulary(engine: Engine) -> int:
    """Words of the engine's model."""
    return hand_over.runner_of(engine).model.config.vocab_size


def point_of(length: int, found: list[Trial], transport: str) -> HandOverPoint:
    """The intervals of one prompt length at one decode worker."""

    def ms(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return 1e3 * np.array(values)

    handed, again = ms([one.handed_s for one in found]), ms([one.recomputed_s for one in found])
    return HandOverPoint(
        prompt_tokens=length,
        bytes=found[0].bytes,
        transport=transport,
        transfer=estimate_positive([ms([one.transfer_s for one in found])], "ms"),
        handed_over=estimate_positive([handed], "ms"),
        recomputed=estimate_positive([again], "ms"),
        speedup=estimate_positive([again / handed], "x"),
        equal=all(one.handed.tokens == one.recomputed.tokens for one in found),
    )


def judged(arguments: argparse.Namespace, found: list[Trial], length: int, page_size: int) -> list[str]:
    """What is wrong with one length's hand-overs."""
    count = (length - 1) // page_size
    wrong = [hand_over.wrong_in(one, count, page_size) for one in found]
    if arguments.dtype == "fp32" and any(one.handed.tokens != one.recomputed.tokens for one in found):
        wrong.append("tokens differ from those of the prompt computed again")
    return [one for one in wrong if one]


def corrupted_page_is_caught(
    arguments: argparse.Namespace, ranks: Ranks, engine: Engine, slots: exchange.Exchange
) -> RankedCase:
    """One more hand-over, of which one bit is flipped after it came: every decode worker must tell."""
    name, page_size = "corrupted_page_is_caught", hand_over.runner_of(engine).cache.page_size
    length = max(arguments.prompts)
    if length <= page_size:
        return RankedCase(name, {}, "skipped", f"no whole page travels: prompts have at most {page_size} tokens")
    made = trial(arguments, ranks, engine, slots, length, seed=7, corrupt=True)
    caught = ranks.gathered(made is None or not made.sums_equal)
    missed = [rank for rank, one in enumerate(caught) if not one]
    axes = {"prompt_tokens": length, "transport": slots.name}
    if missed:
        return RankedCase(name, axes, "failed", f"ranks {missed}: one wrong bit of a page that came was not seen")
    return RankedCase(name, axes, "passed", "one bit flipped of a page that came: every decode worker told by its sum")


def work(arguments: argparse.Namespace, ranks: Ranks) -> None:
    if ranks.world == 1:
        reason = "one rank is one worker: start two, on two GPUs or with --device cpu over gloo"
        record.finish(NAME, arguments, ranks, [RankedCase("hand_over", {}, "skipped", reason)])
        return
    engine = ranks.together(lambda: started(arguments, ranks))
    runner = hand_over.runner_of(engine)
    most = (max(arguments.prompts) - 1) // runner.cache.page_size
    slots, missing = exchange.make(ranks, max(most, 1), pages.block_bytes(runner.cache))
    with torch.inference_mode():
        found = trials(arguments, ranks, engine, slots)
        cases = [corrupted_page_is_caught(arguments, ranks, engine, slots)]
    points = []
    for length, own in zip(arguments.prompts, found, strict=True):
        point = point_of(length, own, slots.name) if own else None
        everyone = ranks.gathered((point, judged(arguments, own, length, runner.cache.page_size)))
        wrong = [one for _, told in everyone for one in told]
        first = next(one for one, _ in everyone if one is not None)
        axes = {
            "model": model_name(find_model(arguments.model)), "dtype": arguments.dtype, "prompt_tokens": length,
            "tokens": arguments.tokens, "transport": slots.name,
        }  # fmt: skip
        if wrong:
            cases.append(RankedCase(f"hand_over_{length}", axes, "failed", "; ".join(wrong[:3])))
            continue
        points.append(first)
        equal = "tokens equal to those of the prompt computed again" if first.equal else "equal to its own prefix hits"
        figures = {
            "speedup": RankedFigure(first.speedup, True, ratio=True),
            "transfer_us": RankedFigure(scaled(first.transfer, 1e3, "us"), False),
        }
        cases.append(RankedCase(f"hand_over_{length}", axes, "passed", equal, figures))
    notes = [f"no symmetric memory: {missing}"] if missing else []
    record.finish(NAME, arguments, ranks, cases, hand_overs=points, notes=notes)


def main() -> None:
    parser = record.parser(__doc__ or "")
    parser.add_argument("--model", required=True, help="a model directory, llama-1b, llama-8b or a config.json")
    parser.add_argument("--dtype", default="fp32", choices=COMPUTE)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512], help="tokens of the prompts")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate for each")
    parser.add_argument("--runs", type=int, default=8)
    arguments = parser.parse_args()
    group.run(work, arguments, record.device(arguments))


if __name__ == "__main__":
    main()
