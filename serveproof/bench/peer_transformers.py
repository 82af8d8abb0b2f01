"""transformers' continuous batching over the same requests, in a process of its own: the peer of engine_benchmark.

A model directory is loaded, a bare config.json gets random weights of the same shape.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from serveproof.bench.peer_job import PeerJob, answer
from serveproof.engine.kv_cache import DTYPES
from serveproof.serving_results import PeerLoad

NAME = "transformers continuous batching"


def load(job: PeerJob) -> Any:
    """The model as transformers builds it."""
    path, dtype = Path(job.model), DTYPES[job.dtype]
    if path.is_dir():
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(job.device).eval()
    config = transformers.LlamaConfig(**msgspec.json.decode(path.read_bytes()))
    with torch.device(job.device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def run(job: PeerJob) -> PeerLoad:
    """Seconds from adding the first request to the last token of all; one short request warms up before."""
    model = load(job)
    manager = model.init_continuous_batching(transformers.GenerationConfig(do_sample=False, eos_token_id=-1))
    manager.start()
    try:
        _drive(manager, job.prompts[:1], [4])
        started = time.perf_counter()
        tokens = _drive(manager, job.prompts, job.outputs)
        seconds = time.perf_counter() - started
    finally:
        manager.stop(block=True, timeout=30)
    return PeerLoad(
        name=NAME,
        version=transformers.__version__,
        output_tokens=tokens,
        seconds=seconds,
        output_tokens_per_s=tokens / seconds,
    )


def _drive(manager: Any, prompts: list[list[int]], outputs: list[int]) -> int:
    asked = {}
    for prompt, count in zip(prompts, outputs, strict=True):
        asked[manager.add_request(list(prompt), max_new_tokens=count)] = count
    tokens = 0
    while asked:
        result = manager.get_result(timeout=60)
        if result is None:
            raise RuntimeError(f"transformers gave no result for a minute; {len(asked)} requests are open")
        if result.is_finished() and result.request_id in asked:
            count = asked.pop(result.request_id)
            if len(result.generated_tokens) != count:
                raise RuntimeError(f"transformers gave {len(result.generated_tokens)} of {count} tokens")
            tokens += count
    return tokens


def _on_threads(job: PeerJob) -> PeerLoad:
    torch.set_num_threads(job.threads)
    with torch.inference_mode():
        return run(job)


def main() -> None:
    """Answer the job on the command line."""
    answer(NAME, transformers.__version__, _on_threads)


if __name__ == "__main__":
    main()
