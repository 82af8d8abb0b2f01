"""Other people's clients, each as a user starts it: load clients with twenty streamed requests, four at once, and what
they found as figures of ours; an evaluation harness."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serveproof.load_test import metrics, wire
from serveproof.load_test.outcomes import ClientJob, Planned
from serveproof.load_test.processes import drive

REQUESTS, AT_ONCE, PROMPT, TOKENS = 20, 4, 32, 16
LIMIT_S = 180


@dataclass(frozen=True)
class Found:
    """What one client says. done: requests answered whole; latencies are medians in ms."""

    client: str
    done: int
    output_tokens: float
    ttft_ms: float
    gap_ms: float


def _start(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def guidellm(programs: Path, base: str, tokenizer: Path, folder: Path) -> Found:
    """guidellm over chat completions. gap: its inter_token_latency, (end - first) / (n - 1)."""
    out = folder / "guidellm.json"
    _start(
        [
            str(programs / "guidellm"), "run", "--backend", f"kind=openai_http,target={base}",
            "--profile", f"kind=concurrent,streams={AT_ONCE}", "--constraint", f"kind=max_requests,count={REQUESTS}",
            "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS}",
            "--output", f"kind=json,path={out}", "--disable-console",
        ],
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    told = json.loads(out.read_text())["benchmarks"][0]["metrics"]
    middle = {
        name: told[name]["successful"]["median"]
        for name in ("output_token_count", "time_to_first_token_ms", "inter_token_latency_ms")
    }
    return Found("guidellm", told["request_totals"]["successful"], *middle.values())


def aiperf(programs: Path, base: str, tokenizer: Path, folder: Path) -> Found:
    """aiperf over completions. It takes a local tokenizer only while it may ask the hub."""
    _start(
        [
            str(programs / "aiperf"), "profile", "-m", _model(base), "--url", base, "--endpoint-type", "completions",
            "--streaming", "--tokenizer", str(tokenizer), "--concurrency", str(AT_ONCE),
            "--request-count", str(REQUESTS), "--prompt-input-tokens-mean", str(PROMPT),
            "--prompt-output-tokens-mean", str(TOKENS), "--prompt-output-tokens-stddev", "0",
            "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none",
            "--output-artifact-dir", str(folder / "aiperf"),
        ],
    )  # fmt: skip
    told = json.loads(next((folder / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    names = ("output_sequence_length", "time_to_first_token", "inter_token_latency")
    return Found("aiperf", int(told["request_count"]["avg"]), *(told[name]["p50"] for name in names))


def lm_eval(programs: Path, base: str, tokenizer: Path, text: str, prefix: int, window: int, folder: Path) -> float:
    """NLL in nats that lm-eval's local-completions sums over a text. prefix: the id before its first token; window:
    tokens of one request. lm-eval takes two off its max_length, and a window has its context besides."""
    (folder / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    task = {
        "task": "one_text", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "text.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }  # fmt: skip
    (folder / "one_text.yaml").write_text(json.dumps(task))  # JSON is YAML
    asked = {
        "model": _model(base), "base_url": f"{base}/v1/completions", "tokenizer": str(tokenizer),
        "tokenizer_backend": "huggingface", "tokenized_requests": True, "custom_prefix_token_id": prefix,
        "max_length": window + 1, "num_concurrent": 1,
    }  # fmt: skip
    _start(
        [
            str(programs / "lm_eval"), "run", "--model", "local-completions",
            "--model_args", ",".join(f"{name}={value}" for name, value in asked.items()),
            "--tasks", "one_text", "--include_path", str(folder), "--output_path", str(folder / "lm_eval.json"),
        ],
        HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(folder / "hf"),
    )  # fmt: skip
    told = json.loads(next(folder.glob("lm_eval*.json")).read_text())["results"]["one_text"]
    return float(np.log(told["byte_perplexity,none"])) * len(text.encode())


def ours(base: str) -> Found:
    """The client of the load test, as a closed loop like theirs."""
    name = _model(base)
    requests = [
        Planned(n, 0.0, wire.body("completions", name, [100 + n] * PROMPT, TOKENS, seed=n), "", "", PROMPT, TOKENS)
        for n in range(1, REQUESTS + 1)
    ]
    driven = drive(ClientJob(base + wire.PATHS["completions"], requests, 60.0, concurrency=AT_ONCE))
    served = [one for one in metrics.served(driven.outcomes, driven.planned, driven.start_ns) if one.ok]
    middle = [float(np.median(metrics.values(served, figure))) for figure in ("ttft", "tpot")]
    return Found("serveproof", len(served), float(np.median([one.output_tokens for one in served])), *middle)


def _model(base: str) -> str:
    from serveproof.load_test.server_process import model_name

    return model_name(base)
