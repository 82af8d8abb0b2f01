"""Programs that others wrote, against the server or its engine: Prometheus, schemathesis, MLPerf's load generator."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from serveproof.engine.engine import Engine
from serveproof.engine.sequence import SamplingParams
from serveproof.ports import free_port
from tests.server.conftest import Server, post

PROMETHEUS = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed; on Debian: apt-get install prometheus",
)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 9, "temperature": 0, "ignore_eos": True} | more


@PROMETHEUS
def test_promtool_finds_no_fault_with_the_metrics(served: Server) -> None:
    assert post(f"{served.url}/v1/completions", body())[0] == 200
    page = served.get("/metrics")[1]
    own = "\n".join(line for line in page.splitlines() if "vllm:" not in line) + "\n"
    done = subprocess.run(["promtool", "check", "metrics"], input=own, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@PROMETHEUS
def test_prometheus_scrapes_the_server(served: Server, tmp_path: Path) -> None:
    port = free_port()
    target = served.url.removeprefix("http://")
    scrape = {"job_name": "serveproof", "scrape_interval": "200ms", "static_configs": [{"targets": [target]}]}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape | {"scrape_timeout": "200ms"}]}))
    address = f"127.0.0.1:{port}"
    command = ["prometheus", "--config.file", "prometheus.yml", "--storage.tsdb.path", "data"]
    process = subprocess.Popen(
        [*command, "--web.listen-address", address], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def ask(query: str) -> list[dict[str, Any]]:
        address_of = f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}"
        try:
            with urllib.request.urlopen(address_of, timeout=5) as answer:
                found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
                return found
        except OSError:
            return []

    try:
        served.until(lambda: bool(ask("serveproof_engine_up == 1")))
        before = float(ask("serveproof_generation_tokens_total")[0]["value"][1])
        assert post(f"{served.url}/v1/completions", body())[0] == 200
        served.until(lambda: float(ask("serveproof_generation_tokens_total")[0]["value"][1]) == before + 9)
        served.until(lambda: float(ask("vllm:generation_tokens_total")[0]["value"][1]) == before + 9)
        quantile = "histogram_quantile(0.5, sum by (le) (serveproof_inter_token_latency_seconds_bucket))"
        assert 0 < float(ask(quantile)[0]["value"][1]) < 1
    finally:
        process.kill()
        process.wait()


def test_schemathesis_finds_no_fault_with_the_schema(served: Server) -> None:
    """Requests drawn from /openapi.json, good and bad ones. What is left out: a prompt that the schema allows and that
    is longer than the model is refused, and unknown headers are let pass, as everywhere in HTTP."""
    program = Path(sys.executable).parent / "schemathesis"
    if not program.exists():
        pytest.skip("schemathesis is not installed; `make test` installs it")
    left_out = "positive_data_acceptance,unsupported_method,missing_required_header,use_after_free"
    command = [
        str(program),
        "run",
        f"{served.url}/openapi.json",
        "--mode",
        "all",
        "--max-examples",
        "25",
        "--seed",
        "1",
    ]
    done = subprocess.run(
        [*command, "--exclude-checks", left_out, "--phases", "coverage,fuzzing", "--suppress-health-check", "all"],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert "returned 404" not in done.stdout  # else it never came past the name of the model
    assert served.healthy()


def test_mlperfs_load_generator_calls_the_engine_valid(engine: Engine, tmp_path: Path) -> None:
    """The Server scenario, tokens counted, by the load generator's own log."""
    loadgen = pytest.importorskip("mlperf_loadgen")
    todo: queue.Queue[Any] = queue.Queue()
    prompts = [[3 + number % 90, 5, 7, 9] for number in range(64)]
    tokens = 6

    def serve() -> None:
        """Takes queries between steps, as a server does."""
        while True:
            try:
                sample = todo.get(timeout=0 if engine.busy else 0.5)
                if sample is None:
                    return
                params = SamplingParams(max_tokens=tokens, ignore_eos=True)
                engine.add(str(sample.id), prompts[sample.index], params)
                continue
            except queue.Empty:
                pass
            seen: dict[str, list[int]] = getattr(serve, "seen", {})
            for output in engine.step():
                own = seen.setdefault(output.request_id, [])
                if not own:
                    loadgen.FirstTokenComplete([loadgen.QuerySampleResponse(int(output.request_id), 0, 0, 1)])
                own += output.tokens
                if output.finish_reason:
                    loadgen.QuerySamplesComplete(
                        [loadgen.QuerySampleResponse(int(output.request_id), 0, 0, len(seen.pop(output.request_id)))]
                    )
            serve.seen = seen  # type: ignore[attr-defined]

    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps, settings.server_target_latency_ns = 200, 2 * 10**9
    settings.use_token_latencies = True
    settings.ttft_latency, settings.tpot_latency = 2 * 10**9, 100 * 10**6
    settings.min_duration_ms, settings.min_query_count = 2000, 800  # early stopping at 99 % needs 662
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(tmp_path), False
    log = loadgen.LogSettings()
    log.log_output = output
    engine_thread = threading.Thread(target=serve)
    engine_thread.start()
    begun = time.monotonic()
    sut = loadgen.ConstructSUT(lambda samples: [todo.put(one) for one in samples], lambda: None)
    library = loadgen.ConstructQSL(len(prompts), len(prompts), lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
    finally:
        todo.put(None)
        engine_thread.join(10)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    assert "Result is : VALID" in summary, summary
    assert "Completed tokens per second" in summary
    assert time.monotonic() - begun > 2
    assert engine.snapshot().used_blocks == 0
