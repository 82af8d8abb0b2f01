"""When requests arrive: processes that are drawn, and traces that are replayed. All times in seconds from the start.

Poisson: independent arrivals. Gamma: the same rate with gaps of shape `burstiness`, as vLLM's and SGLang's benchmarks
have it: 1 is Poisson, less is burstier, more is more regular. Ramp: a Poisson process whose rate grows linearly
(thinning: Lewis and Shedler, Naval Research Logistics Quarterly 26(3), 1979).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from serveproof.errors import UserError

Floats = npt.NDArray[np.float64]
PROCESSES = ("poisson", "gamma", "constant", "ramp")


@dataclass(frozen=True)
class Traced:
    """One request of a trace: when it came, and how long prompt and answer were, in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def draw(
    process: str,
    rate_per_s: float,
    duration_s: float,
    generator: np.random.Generator,
    *,
    burstiness: float = 1.0,
    end_rate_per_s: float | None = None,
) -> Floats:
    """Arrival times in [0, duration_s), ascending. end_rate_per_s: what a ramp ends with. UserError for what can't be.

    The first arrival is one gap after the start, so that the rate holds from the first second on.
    """
    if not rate_per_s > 0 or not duration_s > 0:
        raise UserError(f"a rate of {rate_per_s:g} requests/s for {duration_s:g} s: both must be more than 0")
    if not burstiness > 0:
        raise UserError(f"burstiness is {burstiness:g}; it must be more than 0 (1 is Poisson, less is burstier)")
    if process == "constant":
        return np.arange(1, int(rate_per_s * duration_s) + 1, dtype=np.float64) / rate_per_s - 0.5 / rate_per_s
    if process == "poisson":
        return _renewals(rate_per_s, duration_s, 1.0, generator)
    if process == "gamma":
        return _renewals(rate_per_s, duration_s, burstiness, generator)
    if process == "ramp":
        end = rate_per_s if end_rate_per_s is None else end_rate_per_s
        if not end > 0:
            raise UserError(f"a ramp's last rate is {end:g} requests/s; it must be more than 0")
        highest = max(rate_per_s, end)
        times = _renewals(highest, duration_s, 1.0, generator)
        rates = rate_per_s + (end - rate_per_s) * times / duration_s
        return times[generator.random(len(times)) * highest < rates]
    raise UserError(f"arrivals '{process}': there are {', '.join(PROCESSES)}")


def _renewals(rate_per_s: float, duration_s: float, shape: float, generator: np.random.Generator) -> Floats:
    """Times whose gaps are gamma distributed with mean 1 / rate and that shape."""
    times: list[Floats] = []
    last = 0.0
    while last < duration_s:
        gaps = generator.gamma(shape, 1 / (rate_per_s * shape), max(16, int(rate_per_s * duration_s * 1.2)))
        times.append(last + np.cumsum(gaps))
        last = float(times[-1][-1])
    joined = np.concatenate(times)
    return joined[joined < duration_s]


def read_trace(path: Path) -> list[Traced]:
    """A trace by its columns: BurstGPT's CSV (Timestamp in s, Request tokens, Response tokens; arXiv 2401.17644) or
    Mooncake's JSONL (timestamp in ms, input_length, output_length; arXiv 2407.00079).

    Ascending, from 0. Requests without an answer in the trace (BurstGPT marks failures with 0 tokens) are left out.
    UserError naming file and line.
    """
    try:
        traced = _mooncake(path) if path.suffix == ".jsonl" else _burstgpt(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such trace") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; give BurstGPT's CSV or Mooncake's JSONL") from None
    traced = sorted((one for one in traced if one.prompt_tokens > 0 and one.output_tokens > 0), key=lambda r: r.at_s)
    if not traced:
        raise UserError(f"{path}: holds no request with a prompt and an answer")
    first = traced[0].at_s
    return [Traced(one.at_s - first, one.prompt_tokens, one.output_tokens) for one in traced]


def _burstgpt(path: Path) -> list[Traced]:
    wanted = ("Timestamp", "Request tokens", "Response tokens")
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in wanted if name not in (rows.fieldnames or [])]
        if missing:
            raise UserError(f"{path}: no column '{missing[0]}'; BurstGPT's CSV has {', '.join(wanted)}")
        found = []
        for row in rows:
            try:
                found.append(Traced(float(row[wanted[0]]), int(float(row[wanted[1]])), int(float(row[wanted[2]]))))
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {rows.line_num} has no three numbers in {', '.join(wanted)}") from None
    return found


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int


def _mooncake(path: Path) -> list[Traced]:
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=_MooncakeLine)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}: line {number}: {error}; Mooncake's lines have timestamp, input_length, "
                            f"output_length") from None  # fmt: skip
        found.append(Traced(one.timestamp / 1e3, one.input_length, one.output_length))
    return found


def replayed(traced: list[Traced], duration_s: float, rate_per_s: float | None) -> list[Traced]:
    """The first duration_s of a trace; with a rate, the trace's clock is stretched so that it comes at that rate."""
    if rate_per_s is None:
        return [one for one in traced if one.at_s < duration_s]
    own = len(traced) / traced[-1].at_s if traced[-1].at_s else 1.0
    stretched = [Traced(one.at_s * own / rate_per_s, one.prompt_tokens, one.output_tokens) for one in traced]
    return [one for one in stretched if one.at_s < duration_s]
