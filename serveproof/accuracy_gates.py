"""Accuracy gates: what a precision or a way of serving may cost, and which speedups fall with it. Never imports torch.

A precision that costs more than its bound is no win, however fast: what uses it (USES) loses its verdict.
"""

from __future__ import annotations

import msgspec

from serveproof.accuracy_records import REFERENCES, PerplexityRecord, PrecisionResult
from serveproof.results import Estimate, Verdict, VerdictName
from serveproof.serving_results import EngineRecord, LadderRecord

SOURCE = "accuracy_gate in config/config.yaml"
# A bf16 logit between 16 and 32 has steps of 0.125: two that close are in either order by rounding alone.
TIE_NATS = 0.25

FP8_WEIGHTS = ("served/fp8_weights", "perplexity/fp8_e4m3_dynamic")
INT8_WEIGHTS = ("served/int8_weights", "perplexity/int8_channel")
INT4_WEIGHTS = ("served/int4_weights",)
FP8_CACHE = ("served/fp8_cache",)
# What uses a precision -> the gates that judge it. A pair, a rung of the ladder (and those above it, which keep what it
# added), or the engine's weights or cache.
PAIRS = {
    "fp8_kv_cache": FP8_CACHE,
    "fp8_transformer_engine": (*FP8_WEIGHTS, "perplexity/fp8_e4m3_tensor", "perplexity/fp8_e4m3_channel"),
    "nvfp4_mlp": ("perplexity/nvfp4",),
}
RUNGS = {"int8 weights": INT8_WEIGHTS, "fp8 weights": FP8_WEIGHTS, "fp8 cache": FP8_CACHE}
WEIGHTS = {"int8": INT8_WEIGHTS, "int4": INT4_WEIGHTS, "fp8": FP8_WEIGHTS}
CACHES = {"fp8": FP8_CACHE}


def judged_precisions(record: PerplexityRecord) -> list[PrecisionResult]:
    """The precisions that are held against bf16: all but the references."""
    return [one for one in record.precisions if one.precision not in REFERENCES]


def judge_accuracy(
    record: PerplexityRecord, max_increase_percent: float, bounds: dict[str, float] | None = None
) -> list[Verdict]:
    """Each precision's and served path's perplexity against bf16's by the paired interval, and exact paths' answers.

    bounds: by precision or path, instead of max_increase_percent.
    """
    limits = bounds or {}
    verdicts = [
        _gate(f"perplexity/{one.precision}", one.relative_to_bf16, limits.get(one.precision, max_increase_percent))
        for one in judged_precisions(record)
    ]
    for path in record.served:
        subject = f"served/{path.path}"
        if path.status != "passed" or path.relative_to_bf16 is None:
            verdict: VerdictName = "skipped" if path.status == "skipped" else "failed"
            verdicts.append(Verdict(subject, "relative_to_bf16", verdict, path.reason))
            continue
        verdicts.append(_gate(subject, path.relative_to_bf16, limits.get(path.path, max_increase_percent)))
        if path.exact and path.greedy is not None:
            gap = path.greedy.largest_gap_nats
            same = f"{path.greedy.identical} of {path.greedy.prompts} answers are the bf16 model's"
            wrong = gap > TIE_NATS
            reason = f"{same}; where others part from it, its own choice is at most {gap:.3g} nats likelier"
            verdicts.append(
                Verdict(
                    subject, "greedy", "failed" if wrong else "met", reason, unit="nats", value=gap, upper=TIE_NATS,
                    source="a tie of bf16 logits, serveproof/accuracy_gates.py",
                )
            )  # fmt: skip
    return verdicts


def _gate(subject: str, figure: Estimate, limit: float) -> Verdict:
    verdict: VerdictName = "inconclusive"
    reason = f"the interval straddles the gate of {limit:g} %: score more tokens"
    if figure.high <= limit:
        verdict, reason = "met", f"at most {limit:g} % worse than bf16"
    elif figure.low > limit:
        verdict, reason = "regressed", f"more than {limit:g} % worse than bf16"
    return Verdict(
        subject, "relative_to_bf16", verdict, reason, unit=figure.unit, value=figure.value, low=figure.low,
        high=figure.high, upper=limit, source=SOURCE,
    )  # fmt: skip


def failed(verdicts: list[Verdict], gates: tuple[str, ...]) -> Verdict | None:
    """The first of those gates whose precision costs too much, or serves other tokens; None where none does."""
    bad = [one for one in verdicts if one.subject in gates and one.verdict in ("regressed", "failed")]
    return bad[0] if bad else None


def _words(gate: Verdict) -> str:
    cost = "" if gate.value is None else f" ({gate.value:+.3g} {gate.unit}, {gate.upper:g} allowed)"
    return f"fast but wrong: {gate.subject} is beyond its accuracy gate{cost}"


def gated(verdicts: list[Verdict], accuracy: list[Verdict]) -> list[Verdict]:
    """The verdicts, but each figure of a pair whose precision failed its gate is regressed, whatever it was."""
    found = []
    for one in verdicts:
        gate = failed(accuracy, PAIRS.get(one.subject.partition("/")[0], ()))
        if gate is None or one.verdict in ("skipped", "failed"):
            found.append(one)
            continue
        reason = f"{_words(gate)}; its speed alone was {one.verdict.replace('_', ' ')}: {one.reason}"
        found.append(msgspec.structs.replace(one, verdict="regressed", reason=reason, failed_gate=gate.subject))
    return found


def rung_gates(record: LadderRecord, accuracy: list[Verdict]) -> dict[str, Verdict]:
    """By rung the failed gate of what it, or one before it, added. Rungs without a figure are left out."""
    found: dict[str, Verdict] = {}
    gate: Verdict | None = None
    for rung in record.rungs:
        if rung.status != "passed":
            continue
        gate = gate or failed(accuracy, RUNGS.get(rung.name, ()))
        if gate is not None:
            found[rung.name] = gate
    return found


def load_gate(record: EngineRecord, accuracy: list[Verdict]) -> Verdict | None:
    """The failed gate of an engine's weights or cache."""
    return failed(accuracy, (*WEIGHTS.get(record.weights, ()), *CACHES.get(record.cache_dtype, ())))


def judge_engine(ladders: list[LadderRecord], loads: list[EngineRecord], accuracy: list[Verdict]) -> list[Verdict]:
    """A regressed verdict for each rung and engine under load whose precision failed its gate."""
    found = [(f"ladder/{name}", gate) for record in ladders for name, gate in rung_gates(record, accuracy).items()]
    rows = [(record, load_gate(record, accuracy)) for record in loads]
    found += [
        (f"engine/{record.model}, weights {record.weights}, cache {record.cache_dtype}", gate)
        for record, gate in rows
        if gate is not None
    ]
    return [
        Verdict(subject, "speedup", "regressed", _words(gate), unit="x", failed_gate=gate.subject)
        for subject, gate in found
    ]
