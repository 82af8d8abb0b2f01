"""A server's /metrics as the few figures that a load test and the cache monitor need, by vLLM's names or SGLang's."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from serveproof.errors import UserError

# what it is -> names that servers give it
NAMES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}


@dataclass(frozen=True)
class Sample:
    """One moment; None where the server does not tell. cache_usage: share of the KV cache in use."""

    running: float | None = None
    waiting: float | None = None
    cache_usage: float | None = None


def parse(page: str) -> Sample:
    """The page's figures; of several engines requests are summed, and the fullest cache counts."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    chosen = {what: next((found[name] for name in names if name in found), None) for what, names in NAMES.items()}
    running, waiting, usage = chosen["running"], chosen["waiting"], chosen["cache_usage"]
    return Sample(sum(running) if running else None, sum(waiting) if waiting else None, max(usage) if usage else None)


def fetch(base_url: str, api_key: str = "", timeout_s: float = 2.0) -> Sample:
    """Ask base_url/metrics now; api_key: of a server that wants one. UserError where there is no such page."""
    url = f"{base_url.rstrip('/')}/metrics"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{base_url}: not an http:// or https:// address")
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as response:  # noqa: S310 - http only, checked above
            return parse(response.read().decode())
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        raise UserError(f"{url}: {error}") from None
