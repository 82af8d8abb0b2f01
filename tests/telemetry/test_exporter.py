"""The exporter as a user starts it, and a real Prometheus that scrapes it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serveproof.hardware.key import nvml
from tests.load_test.conftest import null_server  # noqa: F401 - a server with metrics to scrape

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/dcgm_prometheus_exporter.py"


@pytest.fixture
def exporter() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, base URL)"""
    process = subprocess.Popen([sys.executable, SCRIPT, "--port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    found = re.search(r"http://\S+(?=/metrics)", process.stderr.readline())
    assert found
    yield process, found[0]
    process.kill()
    process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.skipif(nvml() is not None, reason="there is an NVIDIA driver: this test is for machines without one")
def test_without_a_gpu_it_serves_the_host_and_says_why(exporter: tuple[subprocess.Popen[str], str]) -> None:
    process, base = exporter
    page = get(f"{base}/metrics")
    assert 'serveproof_gpu_series_missing{reason="no NVIDIA driver: NVML could not be loaded"} 1.0' in page
    assert "serveproof_gpus 0.0" in page
    assert float(re.search(r"^serveproof_host_memory_size_bytes (\S+)", page, re.M)[1]) > 2**28  # type: ignore[index]
    assert "DCGM" not in page
    assert "metrics are at /metrics" in get(base + "/")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stderr
    assert "no GPU series: no NVIDIA driver" in process.stderr.read()


def test_a_port_that_is_taken_is_one_line(exporter: tuple[subprocess.Popen[str], str]) -> None:
    port = exporter[1].rpartition(":")[2]
    done = subprocess.run([sys.executable, SCRIPT, "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("serveproof: ")
    assert "choose another --port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_promtool_has_nothing_to_say(
    exporter: tuple[subprocess.Popen[str], str], prometheus_programs: tuple[str, str]
) -> None:
    own = "\n".join(line for line in get(f"{exporter[1]}/metrics").splitlines() if "DCGM_" not in line) + "\n"
    done = subprocess.run(
        [prometheus_programs[1], "check", "metrics"], input=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr


def test_a_real_prometheus_scrapes_exporter_and_server(
    exporter: tuple[subprocess.Popen[str], str],
    null_server: Callable[..., str],  # noqa: F811 - the fixture
    prometheus_programs: tuple[str, str],
    tmp_path: Path,
) -> None:
    config = yaml.safe_load((ROOT / "dashboards/prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "dashboards/rules.yml")]
    for job, base in zip(config["scrape_configs"], (null_server(slots=4), exporter[1]), strict=True):
        job["static_configs"] = [{"targets": [base.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [prometheus_programs[0], f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         "--web.listen-address=127.0.0.1:0", "--log.level=info"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        base = listening(process)

        wait_until_ready(base)

        def ask(expression: str) -> list[dict[str, Any]]:
            query = urllib.parse.urlencode({"query": expression})
            return list(json.loads(get(f"{base}/api/v1/query?{query}"))["data"]["result"])

        until = time.monotonic() + 30
        while time.monotonic() < until and sum(float(one["value"][1]) for one in ask("up")) < 2:
            time.sleep(0.3)
        assert {one["metric"]["job"]: one["value"][1] for one in ask("up")} == {"serving": "1", "gpu": "1"}
        assert float(ask("serveproof_host_cpus")[0]["value"][1]) >= 1
        assert ask("vllm:num_requests_running")[0]["value"][1] == "0"
        assert ask("vllm:kv_cache_usage_perc{job='serving'}")
        if nvml() is None:
            assert ask("serveproof_gpu_series_missing")[0]["metric"]["reason"].startswith("no NVIDIA driver")
        else:
            assert ask("DCGM_FI_DEV_GPU_UTIL")
    finally:
        process.kill()
        process.wait()


def wait_until_ready(base: str) -> None:
    """Prometheus listens before it can answer."""
    for _ in range(100):
        try:
            get(f"{base}/-/ready")
        except urllib.error.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("prometheus was not ready after 10 s")


def listening(process: subprocess.Popen[str]) -> str:
    """The address that Prometheus chose, from its own log."""
    assert process.stderr
    for line in process.stderr:
        found = re.search(r'msg="Listening on" address=(\S+)', line)
        if found:
            # Prometheus writes on: someone must read, or it stops at a full pipe

            threading.Thread(target=process.stderr.read, daemon=True).start()
            return f"http://{found[1]}"
    raise AssertionError("prometheus ended before it listened")
