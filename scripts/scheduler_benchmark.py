"""What the scheduler itself costs: microseconds a step of decodes, with few and many requests waiting, and the ratio.

Needs no model and no GPU: every sequence gets token 1. A step is one call of `schedule` and one of `commit`. Prints a
table. Writes no file.
"""

from __future__ import annotations

import argparse
import time
from statistics import median_high

from serveproof import script
from serveproof.engine.block_manager import BlockManager
from serveproof.engine.policies import POLICIES, make_policy
from serveproof.engine.scheduler import Limits, Scheduler
from serveproof.engine.sequence import Sampled, SamplingParams, Sequence
from serveproof.engine.speculation import propose

PAGE, PROMPT, STEPS = 16, 64, 400


def step_us(running: int, waiting: int, policy: str) -> tuple[float, float]:
    """Median microseconds of (schedule, commit) with `running` sequences decoding and `waiting` more queued."""
    pages = (PROMPT + STEPS + 100) // PAGE + 1
    limits = Limits(max_running=running, token_budget=max(8192, running * PROMPT), max_model_len=100_000)
    blocks = BlockManager(running * pages + 2, PAGE)
    scheduler = Scheduler(limits, blocks, make_policy(policy), frozenset(), propose)
    params = SamplingParams(max_tokens=STEPS + 50, ignore_eos=True)
    for number in range(running + waiting):
        tokens = [number % 1000 + 2] * PROMPT
        scheduler.add(Sequence(str(number), tokens, PROMPT, params, tenant=f"tenant{number % 8}"))
    scheduling, committing = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        step = scheduler.schedule()
        middle = time.perf_counter()
        if step is None:
            raise RuntimeError("nothing was scheduled")
        results = [Sampled((1,)) for chunk in step.chunks if chunk.samples]
        before = time.perf_counter()
        scheduler.commit(step, results)
        scheduling.append(middle - started)
        committing.append(time.perf_counter() - before)
    steady = slice(STEPS // 4, None)
    return 1e6 * median_high(scheduling[steady]), 1e6 * median_high(committing[steady])


def work(arguments: argparse.Namespace) -> None:
    for policy in arguments.policies:
        few, many = step_us(arguments.running, 0, policy), step_us(arguments.running, arguments.waiting, policy)
        print(
            f"{policy}, {arguments.running} running: schedule {few[0]:.0f} us + commit {few[1]:.0f} us, none waiting; "
            f"{many[0]:.0f} + {many[1]:.0f} us with {arguments.waiting}: {sum(many) / sum(few):.2f} x"
        )


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
