"""Once a second beside the load: the server's /metrics, and the GPUs' power and energy by NVML."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import polars as pl

from serveproof.errors import UserError
from serveproof.hardware.key import nvml, visible_gpus
from serveproof.load_test.metrics import Served, outstanding, token_rates
from serveproof.tables import TELEMETRY_SCHEMA
from serveproof.telemetry import scrape

PERIOD_S = 1.0


def is_local(base_url: str) -> bool:
    """Whether a server's GPUs are this machine's, as far as its address tells."""
    return urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")


def gpu_energy_j() -> float | None:
    """Joules of all visible GPUs since the driver was loaded; None without NVML's counter (Volta and later have it)."""
    library = nvml()
    gpus = visible_gpus() if library else []
    if not library or not gpus:
        return None
    total_mj = 0
    with contextlib.suppress(Exception):  # NVML answers 'not supported' per board
        for gpu in gpus:
            handle = library.nvmlDeviceGetHandleByUUID(gpu.uuid)
            total_mj += library.nvmlDeviceGetTotalEnergyConsumption(handle)
        return total_mj / 1e3
    return None


@dataclass
class Watch:
    """Looks once a second from `start` to `stop`. A look that fails is a row of nothing; the load goes on."""

    base_url: str
    api_key: str = ""
    rows: list[tuple[int, scrape.Sample, float | None]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        if self.thread:
            self.thread.join()
        self._look()

    def _look(self) -> None:
        sample = scrape.Sample()
        with contextlib.suppress(UserError):
            sample = scrape.fetch(self.base_url, self.api_key)
        self.rows.append((time.monotonic_ns(), sample, gpu_energy_j() if is_local(self.base_url) else None))

    def _loop(self) -> None:
        due = time.monotonic()
        while not self.ended.is_set():
            self._look()
            due += PERIOD_S
            self.ended.wait(max(0.0, due - time.monotonic()))

    def joules(self, start_ns: int, begin_s: float, end_s: float) -> tuple[float | None, str]:
        """(energy between two times of a run, why there is none), between looks by a straight line."""
        known = [((at - start_ns) / 1e9, energy) for at, _, energy in self.rows if energy is not None]
        if len(known) < 2:
            here = is_local(self.base_url)
            return None, "no GPU with an energy counter in NVML" if here else "the server is on another machine"
        at_s, energy = zip(*known, strict=True)
        first, last = np.interp([begin_s, end_s], at_s, energy)
        return float(last - first), ""

    def table(self, run: int, start_ns: int, requests: Sequence[Served]) -> pl.DataFrame:
        """One row a second: the server's figures, and what the client saw."""
        rows, before = [], None
        for at_ns, sample, energy in self.rows:
            second = (at_ns - start_ns) / 1e9
            power = None
            if energy is not None and before is not None and at_ns > before[0]:
                power = (energy - before[1]) / ((at_ns - before[0]) / 1e9)
            before = (at_ns, energy) if energy is not None else None
            rows.append(
                {
                    "run": run,
                    "second": second,
                    "running": sample.running,
                    "waiting": sample.waiting,
                    "cache_usage": sample.cache_usage,
                    "under_way": int(outstanding(requests, np.asarray([second]))[0]),
                    "output_tokens_per_s": float(token_rates(requests, start_ns, second - PERIOD_S, second).mean()),
                    "power_w": power,
                }
            )
        return pl.DataFrame(rows, schema=TELEMETRY_SCHEMA)
