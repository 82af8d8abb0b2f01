"""Every metric of the server, named once, and the same figures under vLLM's names for dashboards made for it.

Names follow Prometheus' rules: base units, counters end in _total. vLLM's: docs.vllm.ai, "Production metrics" (V1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

disable_created_metrics()  # type: ignore[no-untyped-call]

# s: a GPU's tokens are a millisecond apart, a busy CPU's first token takes half a minute
SECONDS = (
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(frozen=True)
class Named:
    """A metric. labels beside model_name; vllm: its name there, '' where there is none."""

    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    vllm: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    "serveproof_requests_running": Named(Gauge, "Requests in the running batch", "vllm:num_requests_running"),
    "serveproof_requests_waiting": Named(Gauge, "Requests that wait to run", "vllm:num_requests_waiting"),
    "serveproof_kv_cache_usage_ratio": Named(Gauge, "Share of cache blocks in use", "vllm:kv_cache_usage_perc"),
    "serveproof_kv_cache_blocks": Named(Gauge, "Cache blocks that there are"),
    "serveproof_engine_up": Named(Gauge, "1 when the engine steps, else 0"),
    "serveproof_engine_steps": Named(Counter, "Steps of the engine"),
    "serveproof_engine_restarts": Named(Counter, "Times that the engine's process was started again"),
    "serveproof_preemptions": Named(Counter, "Requests put back for want of cache blocks", "vllm:num_preemptions"),
    "serveproof_prefix_cache_queried_tokens": Named(
        Counter, "Prompt tokens looked up in the prefix cache", "vllm:prefix_cache_queries"
    ),
    "serveproof_prefix_cache_hit_tokens": Named(
        Counter, "Prompt tokens found in the prefix cache", "vllm:prefix_cache_hits"
    ),
    "serveproof_prompt_tokens": Named(Counter, "Tokens of prompts that were answered", "vllm:prompt_tokens"),
    "serveproof_generation_tokens": Named(Counter, "Tokens generated", "vllm:generation_tokens"),
    "serveproof_requests_finished": Named(
        Counter, "Requests that ended, by why", "vllm:request_success", ("finished_reason",)
    ),
    "serveproof_requests_refused": Named(Counter, "Requests refused, by HTTP status", "", ("status",)),
    "serveproof_time_to_first_token_seconds": Named(
        Histogram, "Arrival to first token", "vllm:time_to_first_token_seconds", (), SECONDS
    ),
    "serveproof_inter_token_latency_seconds": Named(
        Histogram, "Between two tokens of a request", "vllm:inter_token_latency_seconds", (), SECONDS
    ),
    "serveproof_time_per_output_token_seconds": Named(
        Histogram, "(Last - first token) / (tokens - 1) of a request", "vllm:request_time_per_output_token_seconds", (),
        SECONDS,
    ),
    "serveproof_request_latency_seconds": Named(
        Histogram, "Arrival to last token", "vllm:e2e_request_latency_seconds", (), SECONDS
    ),
    "serveproof_request_prompt_tokens": Named(
        Histogram, "Tokens of a request's prompt", "vllm:request_prompt_tokens", (), TOKENS
    ),
    "serveproof_request_generation_tokens": Named(
        Histogram, "Tokens of a request's answer", "vllm:request_generation_tokens", (), TOKENS
    ),
}  # fmt: skip


class EngineMetrics:
    """The metrics of one server. model: the name that requests use."""

    def __init__(self, model: str) -> None:
        self.registry, self.model = CollectorRegistry(), model
        self._made: dict[str, Any] = {}
        parents = []
        for name, one in METRICS.items():
            more: Any = {"buckets": one.buckets} if one.buckets else {}
            made = one.kind(name, one.help, ("model_name", *one.labels), registry=self.registry, **more)
            self._made[name] = made if one.labels else made.labels(model)
            parents.append(made)
        self.registry.register(_UnderVllmsNames(parents))
        self._counted: dict[str, int] = {}

    def add(self, name: str, amount: float = 1, *labels: str) -> None:
        """Count. labels: in the metric's order."""
        (self._made[name].labels(self.model, *labels) if labels else self._made[name]).inc(amount)

    def put(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._made[name].set(value)

    def observe(self, name: str, value: float) -> None:
        """One value of a histogram."""
        self._made[name].observe(value)

    def counted(self, name: str, total: int) -> None:
        """Bring a counter up to a total that someone else counts; a total that fell began anew."""
        before = self._counted.get(name, 0)
        self._counted[name] = total
        self.add(name, total - before if total >= before else total)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _UnderVllmsNames:
    """A collector that gives our metrics once more; describe() is empty so that registering does not collect."""

    def __init__(self, collectors: list[Counter | Gauge | Histogram]) -> None:
        self.collectors = collectors

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for family in (family for collector in self.collectors for family in collector.collect()):
            known = METRICS.get(family.name)
            if known is None or not known.vllm:
                continue
            renamed = Metric(known.vllm, known.help, family.type)
            renamed.samples = [
                Sample(known.vllm + one.name.removeprefix(family.name), one.labels | {"engine": "0"}, one.value)
                for one in family.samples
            ]
            yield renamed
