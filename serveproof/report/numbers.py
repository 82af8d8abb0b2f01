"""Figures as text: three significant digits, a unit that suits their size, as many decimals as the interval earns."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from serveproof.results import Estimate, Metric

# unit in a record -> (what it measures, how many base units it is); base units: seconds, bytes, bytes/s, flop/s
UNITS = {
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "us": ("time", 1e-6),
    "µs": ("time", 1e-6),
    "ns": ("time", 1e-9),
    "bytes": ("bytes", 1.0),
    "b": ("bytes", 1.0),
    "bytes/s": ("bandwidth", 1.0),
    "b/s": ("bandwidth", 1.0),
    "gb/s": ("bandwidth", 1e9),
    "flop/s": ("rate", 1.0),
    "flops/s": ("rate", 1.0),
    "gflop/s": ("rate", 1e9),
    "tflop/s": ("rate", 1e12),
    "flop": ("work", 1.0),
    "bus bytes/s": ("bus bandwidth", 1.0),
}
STEPS = {
    "time": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
    "bytes": [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")],
    "bandwidth": [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")],
    "bus bandwidth": [(1e12, "TB/s bus"), (1e9, "GB/s bus"), (1e6, "MB/s bus"), (1e3, "kB/s bus"), (1.0, "B/s bus")],
    "work": [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")],
    "rate": [
        (1e15, "PFLOP/s"),
        (1e12, "TFLOP/s"),
        (1e9, "GFLOP/s"),
        (1e6, "MFLOP/s"),
        (1e3, "kFLOP/s"),
        (1.0, "FLOP/s"),
    ],
}
RATIO_UNITS = {"x", "×", "ratio", "speedup"}
FRACTION_UNITS = {"fraction", "1", ""}


def _decimals(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    # Rounded first: 0.9997 to three digits is 1.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def plain(value: float, decimals: int) -> str:
    """The value with that many decimals, thin groups of thousands and a true minus; never an exponent."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    text = f"{value:,.{decimals}f}".replace(",", "\u202f")
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.") else "−" + text[1:]
    return text


def significant(value: float, digits: int = 3) -> str:
    """The value to so many significant digits; whole numbers below a million stay whole."""
    if float(value).is_integer() and abs(value) < 1e6:
        return plain(value, 0)
    if value != 0 and math.isfinite(value) and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("-", "−")
    return plain(value, _decimals(value, digits))


def scaled(value: float, unit: str) -> tuple[float, str]:
    """(divisor, name of the unit) that suits this value of a known unit; (1, unit) of any other."""
    known = UNITS.get(unit.lower())
    if known is None:
        return 1.0, unit
    family, size = known
    base = abs(value) * size
    for step, name in STEPS[family]:
        # 999.7 µs would round to 1000 µs: it is 1.00 ms.
        if base >= step * 0.9995:
            return step / size, name
    step, name = STEPS[family][-1] if base > 0 else (size, unit)
    return step / size, name


def figure(value: float, unit: str) -> str:
    """A figure without an interval, with its unit."""
    if unit.lower() in RATIO_UNITS:
        return f"{significant(value)}×"
    if unit in {"%", "percent"}:
        return f"{significant(value)} %"
    divisor, name = scaled(value, unit)
    # Without the rounding, 21.7e9 / 1e9 would not be seen as 21.7, nor 2e9 / 1e9 as whole.
    return f"{significant(float(f'{value / divisor:.12g}'))}\u00a0{name}".strip()


def interval(value: float, low: float, high: float) -> tuple[str, str, str]:
    """The three numbers with the same decimals: three digits of the value, or enough to tell the interval's width."""
    largest = max(abs(value), abs(low), abs(high))
    decimals = _decimals(value or largest, 3)
    width = high - low
    if width > 0:
        decimals = max(decimals, min(_decimals(width, 1), _decimals(largest, 5)))
    return plain(value, decimals), plain(low, decimals), plain(high, decimals)


def parts(estimate: Estimate) -> tuple[str, str]:
    """An estimate as ('1.84×', '[1.79, 1.90]') in a suitable unit; the interval carries the same unit, unsaid."""
    unit, divisor, name = estimate.unit, 1.0, estimate.unit
    if unit.lower() in RATIO_UNITS:
        name = "×"
    elif unit in {"%", "percent"}:
        name = " %"
    elif unit in FRACTION_UNITS:
        name = ""
    else:
        divisor, name = scaled(estimate.value, unit)
        name = f"\u00a0{name}"
    value, low, high = interval(estimate.value / divisor, estimate.low / divisor, estimate.high / divisor)
    return f"{value}{name}", f"[{low}, {high}]"


def ratio(estimate: Estimate) -> tuple[str, str]:
    """A speedup, whatever its record calls the unit."""
    value, low, high = interval(estimate.value, estimate.low, estimate.high)
    return f"{value}×", f"[{low}, {high}]"


def share(estimate: Estimate) -> tuple[str, str]:
    """A fraction as percent: ('61.2 %', '[60.1, 62.0]')."""
    value, low, high = interval(estimate.value * 100, estimate.low * 100, estimate.high * 100)
    return f"{value}\u00a0%", f"[{low}, {high}]"


def metric(one: Metric) -> str:
    """A counted figure with its unit; fractions as percent."""
    if one.unit == "fraction":
        return f"{significant(one.value * 100)}\u00a0%"
    return figure(one.value, one.unit)


def bounds(lower: float | None, upper: float | None) -> str:
    """An expectation's range; an open side is said in words."""
    if lower is not None and upper is not None:
        decimals = 0 if lower.is_integer() and upper.is_integer() else max(_decimals(lower, 3), _decimals(upper, 3))
        return f"[{plain(lower, decimals)}, {plain(upper, decimals)}]"
    if lower is not None:
        return f"at least {significant(lower)}"
    if upper is not None:
        return f"at most {significant(upper)}"
    return "none"


def signed(value: float, decimals: int) -> str:
    """A difference: always with its sign, but zero has none."""
    text = plain(value, decimals)
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"


def moment(date_utc: str) -> str:
    """An ISO time as people read it; what is not one stays as it is."""
    try:
        return datetime.fromisoformat(date_utc).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return date_utc


def count(value: float) -> str:
    """A whole number in groups of thousands."""
    return plain(value, 0)
