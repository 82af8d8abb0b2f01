"""Records in words: verdicts with their signs, how a case was timed, what the machine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from serveproof.report import numbers
from serveproof.results import HardwareRecord, MeasureCase, SideSummary, Timing


@dataclass(frozen=True)
class Badge:
    """A verdict or status as a reader sees it: a sign and a word, and a tone for the colour."""

    sign: str
    word: str
    tone: str


BADGES = {
    "met": Badge("✓", "met", "good"),
    "passed": Badge("✓", "passed", "good"),
    "regressed": Badge("▼", "regressed", "bad"),
    "failed": Badge("✗", "failed", "bad"),
    "error": Badge("✗", "error", "bad"),
    "out_of_memory": Badge("✗", "out of memory", "bad"),
    "too_good": Badge("▲", "too good to believe", "warn"),
    "inconclusive": Badge("≈", "inconclusive", "warn"),
    "expired": Badge("↻", "expired", "warn"),
    "absent": Badge("–", "no expectation", "quiet"),
    "skipped": Badge("○", "skipped", "quiet"),
    "not measured": Badge("…", "not finished", "warn"),
}
METHODS = {
    "host_clock": "the host's monotonic clock from the call to its end, on a GPU the synchronisation included",
    "cuda_events": "CUDA events around the calls, enqueued behind a spin so that launch latency is not in the time",
    "cupti": "CUPTI's stamps on the GPU: from the first kernel's start to the last one's end, enqueued behind a spin",
}
REASONS_SHOWN = 6
GATE_WORDS = {"met": "within the gate", "regressed": "beyond the gate"}


def badge(name: str) -> Badge:
    """The badge of a verdict or status."""
    return BADGES[name]


def bound(case: MeasureCase, side: SideSummary) -> str:
    """What binds a side. Behind a spin launches are not in its time: they bind who calls it without a graph."""
    if side.bound_by != "launches" or case.timing is None or case.timing.method == "host_clock":
        return side.bound_by or case.bound_by
    return f"{case.bound_by} (eager: launches)" if case.bound_by else "eager: launches"


def gate_badge(name: str) -> Badge:
    """The badge of the accuracy gate's verdict, which says `within` rather than `met`."""
    found = BADGES[name]
    return Badge(found.sign, GATE_WORDS.get(name, found.word), found.tone)


def breakable(name: str) -> Markup:
    """A name that may go on in a new line after each of its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def axes_text(axes: dict[str, Any]) -> str:
    """A case's axes on one line."""
    return ", ".join(f"{name} {value}" for name, value in axes.items()) or "none"


def timing_rows(timing: Timing) -> list[tuple[str, str]]:
    """Every field of a Timing in words."""
    shown = timing.discard_reasons[:REASONS_SHOWN]
    more = len(timing.discard_reasons) - len(shown)
    reasons = "; ".join([*shown, *([f"and {more} more"] if more else [])])
    flush = f"{numbers.figure(timing.l2_flush_bytes, 'bytes')} written outside the timed region before each sample"
    pressure = timing.pressure_some_avg10_percent
    rows = [
        ("clock", METHODS[timing.method]),
        ("processes", f"{timing.processes}, each started afresh"),
        ("rounds", f"{timing.rounds} in a process, turns A B B A and B A A B, after {timing.warmup_rounds} of warm-up"),
        ("calls a sample", f"at most {timing.repeats_per_sample}; a sample is their mean time"),
        ("thrown away", f"{timing.discarded_rounds} rounds" + (f": {reasons}" if reasons else "")),
        ("cache flush", flush if timing.l2_flush_bytes else "none"),
        ("threads", str(timing.threads)),
        ("CPU pressure", "not told by this system" if pressure is None else _pressure(pressure)),
        ("took", f"{numbers.figure(timing.seconds, 's')} in all"),
    ]
    if timing.ranks > 1:
        rows.insert(1, ("ranks", f"{timing.ranks} at once, one a GPU; the times are rank 0's"))
    if timing.injected_slowdown_percent:
        injected = f"{timing.injected_slowdown_percent:g} % was added to the optimized side on purpose"
        rows.insert(0, ("NOT A MEASUREMENT", injected))
    if timing.plan:
        rows.append(("planning", timing.plan))
    return rows


def machine_rows(hardware: HardwareRecord) -> list[tuple[str, str]]:
    """The machine's identity and software, as a list of names and values."""
    pressure = hardware.pressure_some_avg10_percent
    clock = "" if hardware.cpu_clock_mhz is None else f", {numbers.significant(hardware.cpu_clock_mhz)} MHz"
    return [
        ("name", hardware.name),
        ("key", hardware.key),
        ("kind", "CUDA GPUs" if hardware.device == "cuda" else "CPU"),
        ("devices", str(hardware.count)),
        ("CPU", f"{hardware.cpu_model}, {hardware.cpu_count} logical CPUs{clock}"),
        ("host memory", numbers.figure(hardware.host_memory_bytes, "bytes")),
        ("driver", hardware.driver or "none"),
        ("CUDA", hardware.cuda or "none"),
        ("torch", hardware.torch),
        ("Python", hardware.python),
        ("CPU pressure", "not told by this system" if pressure is None else _pressure(pressure)),
        ("examined", numbers.moment(hardware.date_utc)),
    ]


def ceiling_rows(hardware: HardwareRecord) -> list[tuple[str, str]]:
    """The measured ceilings that every roofline fraction divides by."""
    ceilings = hardware.ceilings
    rows = [
        ("copy bandwidth", numbers.figure(ceilings.copy_bandwidth_bytes_per_s, "bytes/s")),
        ("read bandwidth", numbers.figure(ceilings.read_bandwidth_bytes_per_s, "bytes/s")),
    ]
    rates = sorted(ceilings.matmul_flops_per_s.items())
    return rows + [(f"matrix rate, {dtype}", numbers.figure(rate, "flop/s")) for dtype, rate in rates]


def _pressure(percent: float) -> str:
    return f"tasks waited for a CPU {numbers.significant(percent)} % of the last 10 s"
