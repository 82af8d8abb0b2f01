"""The scenarios: who sends how much of what the server can carry, in which rhythm, and the requests that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serveproof.errors import UserError
from serveproof.load_test import arrivals, wire
from serveproof.load_test.lengths import Lengths
from serveproof.load_test.outcomes import Planned
from serveproof.load_test.prompts import Prompts

LONG = "long"
GREEDY = "greedy"


@dataclass(frozen=True)
class Tenant:
    """One tenant's share of the requests, and their priority (0 is not sent)."""

    name: str
    share: float
    priority: int = 0


@dataclass(frozen=True)
class Scenario:
    """load: of the server's capacity. end_load: what a ramp ends with. long_every_s: long prompts besides."""

    load: float
    process: str = "poisson"
    burstiness: float = 1.0
    end_load: float | None = None
    tenants: tuple[Tenant, ...] = (Tenant("", 1.0),)
    long_every_s: float | None = None


SCENARIOS = {
    "steady": Scenario(0.6),
    "bursty": Scenario(0.6, "gamma", burstiness=0.25),
    "overload": Scenario(2.0),
    # three tenants within their fair quarter of the capacity, and one that asks for more than all there is
    "multi_tenant": Scenario(
        1.5,
        tenants=(Tenant(GREEDY, 0.76), *(Tenant(f"modest_{letter}", 0.08) for letter in "abc")),
    ),
    # smaller comes sooner, as in vLLM
    "priorities": Scenario(1.5, tenants=(Tenant("urgent", 0.24, -1), Tenant("batch", 0.76))),
    "long_prompts": Scenario(0.3, long_every_s=2.0),
    "ramp": Scenario(0.2, "ramp", end_load=1.2),
}


@dataclass(frozen=True)
class Workload:
    """What a request is made of. long_tokens: of the long prompts of `long_prompts`."""

    route: str
    model: str
    prompts: Prompts
    prompt_lengths: Lengths
    output_lengths: Lengths
    long_tokens: int
    seed: int

    def told(self) -> dict[str, object]:
        """What an expectation is tied to."""
        return {
            "route": self.route,
            "prompt": f"{self.prompt_lengths.kind} {self.prompt_lengths.low:g} to {self.prompt_lengths.high:g}",
            "output": f"{self.output_lengths.kind} {self.output_lengths.low:g} to {self.output_lengths.high:g}",
            "long_tokens": self.long_tokens,
        }


def request(
    workload: Workload,
    number: int,
    at_s: float,
    tenant: Tenant,
    sizes: tuple[int, int],
    generator: np.random.Generator,
    kind: str = "",
) -> Planned:
    """One request of sizes (prompt, output) tokens."""
    body = wire.body(
        workload.route,
        workload.model,
        workload.prompts(sizes[0], generator),
        sizes[1],
        tenant=tenant.name,
        priority=tenant.priority,
        seed=number,
    )
    return Planned(number, at_s, body, tenant.name, kind, *sizes)


def plan(
    scenario: Scenario, workload: Workload, capacity_per_s: float, duration_s: float, run: int = 0
) -> list[Planned]:
    """The requests of one run, ascending by arrival; another run has other arrivals and other prompts."""
    generator = np.random.default_rng([workload.seed, run])
    end = None if scenario.end_load is None else scenario.end_load * capacity_per_s
    at_s = arrivals.draw(
        scenario.process,
        scenario.load * capacity_per_s,
        duration_s,
        generator,
        burstiness=scenario.burstiness,
        end_rate_per_s=end,
    )
    shares = np.asarray([tenant.share for tenant in scenario.tenants])
    chosen = generator.choice(len(shares), len(at_s), p=shares / shares.sum())
    prompts = workload.prompt_lengths.draw(len(at_s), generator)
    outputs = workload.output_lengths.draw(len(at_s), generator)
    # (time, kind, tenant, prompt tokens, output tokens)
    rows = [
        (float(at), "", scenario.tenants[who], int(prompt), int(output))
        for at, who, prompt, output in zip(at_s, chosen, prompts, outputs, strict=True)
    ]
    if scenario.long_every_s is not None:
        long_at = np.arange(0.5 * scenario.long_every_s, duration_s, scenario.long_every_s)
        rows += [(float(at), LONG, Tenant("", 1.0), workload.long_tokens, 4) for at in long_at]
    rows.sort(key=lambda row: row[0])
    return [
        request(workload, number, at, tenant, (prompt, output), generator, kind)
        for number, (at, kind, tenant, prompt, output) in enumerate(rows, start=1)
    ]


def plan_trace(traced: Sequence[arrivals.Traced], workload: Workload, run: int = 0) -> list[Planned]:
    """A trace's requests: its times and lengths, the workload's prompts."""
    if not traced:
        raise UserError("the trace has no request in this duration; give a longer one, or --rate to stretch its clock")
    generator = np.random.default_rng([workload.seed, run])
    nobody = Tenant("", 1.0)
    return [
        request(workload, number, one.at_s, nobody, (one.prompt_tokens, one.output_tokens), generator)
        for number, one in enumerate(traced, start=1)
    ]


def plan_closed(workload: Workload, count: int, run: int = 0) -> list[Planned]:
    """Requests for a closed loop, which sends each when it can."""
    generator = np.random.default_rng([workload.seed, 10_000 + run])
    prompts = workload.prompt_lengths.draw(count, generator)
    outputs = workload.output_lengths.draw(count, generator)
    nobody = Tenant("", 1.0)
    return [
        request(workload, number, 0.0, nobody, (int(prompts[number - 1]), int(outputs[number - 1])), generator)
        for number in range(1, count + 1)
    ]
