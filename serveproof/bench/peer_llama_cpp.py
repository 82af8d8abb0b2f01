"""llama.cpp's server over the same requests, in a process of its own: a peer of engine_benchmark on a CPU.

By xllamacpp, wheels of llama.cpp; it is no dependency (`pip install xllamacpp`). The same token ids go in, end tokens
are ignored, every request has a slot. The GGUF keeps its own 4 or 8 bits: docs/engine.md says what that compares.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from serveproof.bench.peer_job import PeerJob, answer
from serveproof.serving_results import PeerLoad

NAME = "llama.cpp"


def version() -> str:
    """xllamacpp's, whose last part is llama.cpp's build; "absent" where it is not installed."""
    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return "absent"


def run(job: PeerJob) -> PeerLoad:
    """Seconds from sending the first request to the last token of all; one short request warms up before."""
    if version() == "absent":
        raise RuntimeError("xllamacpp is not installed: pip install xllamacpp")
    if job.device != "cpu":
        raise RuntimeError("xllamacpp's wheels compute on a CPU")
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = job.model
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job.threads
    settings.n_parallel = len(job.prompts)
    # one context, shared out evenly among the slots
    settings.n_ctx = len(job.prompts) * max(
        len(one) + count for one, count in zip(job.prompts, job.outputs, strict=True)
    )
    server = xllamacpp.Server(settings)
    _complete(server, job.prompts[0], 4)
    with ThreadPoolExecutor(len(job.prompts)) as pool:
        started = time.perf_counter()
        made = list(pool.map(lambda one: _complete(server, *one), zip(job.prompts, job.outputs, strict=True)))
        seconds = time.perf_counter() - started
    if made != job.outputs:
        raise RuntimeError(f"llama.cpp gave {sum(made)} of {sum(job.outputs)} tokens")
    tokens = sum(made)
    return PeerLoad(NAME, version(), tokens, seconds, tokens / seconds)


def _complete(server: Any, prompt: list[int], count: int) -> int:
    """Tokens generated for one prompt."""
    asked = {"prompt": prompt, "max_tokens": count, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    reply = server.handle_completions(asked)
    if "usage" not in reply:
        raise RuntimeError(f"llama.cpp: {reply}")
    made: int = reply["usage"]["completion_tokens"]
    return made


def main() -> None:
    """Answer, then leave at once: the server's threads wait for requests that will not come."""
    answer(NAME, version(), run)
    os._exit(0)


if __name__ == "__main__":
    main()
