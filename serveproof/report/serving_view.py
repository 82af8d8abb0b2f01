"""What the serving section shows: a row a load test, a block a scenario, the sweep, and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serveproof.load_records import LoadRecord, SweepRecord
from serveproof.report import serving_charts
from serveproof.report.charts import Chart
from serveproof.report.data import LoadTest, Serving
from serveproof.results import Verdict

ORDER = ("steady", "bursty", "ramp", "trace", "closed", "overload", "multi_tenant", "priorities", "long_prompts")


@dataclass(frozen=True)
class ScenarioView:
    """One scenario: its tests, and charts that hold every server's."""

    name: str
    tests: list[LoadTest]
    charts: list[Chart]
    timelines: list[Chart]


@dataclass(frozen=True)
class ServingView:
    """The section. energy, cost: whether any run has them. warnings: runs that are invalid or were not steady."""

    records: list[LoadRecord]
    energy: bool
    cost: bool
    scenarios: list[ScenarioView]
    sweep: SweepRecord | None
    sweep_charts: list[Chart]
    verdicts: list[Verdict]
    warnings: list[str]


def view(serving: Serving, verdicts: Sequence[Verdict]) -> ServingView:
    """Draw everything."""
    tests = sorted(serving.tests, key=lambda one: (ORDER.index(one.record.scenario), one.record.server))
    names = list(dict.fromkeys(test.record.scenario for test in tests))
    sweep = serving.sweep
    drawn = [serving_charts.goodput(sweep), serving_charts.pareto(sweep)] if sweep else []
    return ServingView(
        records=[test.record for test in tests],
        energy=any(run.energy.joules_per_output_token for test in tests for run in test.record.runs),
        cost=any(run.cost_per_million_tokens for test in tests for run in test.record.runs),
        scenarios=[_scenario(name, [one for one in tests if one.record.scenario == name]) for name in names],
        sweep=sweep,
        sweep_charts=[chart for chart in drawn if chart is not None],
        verdicts=[one for one in verdicts if one.subject.startswith("serving/")],
        warnings=[line for test in tests for line in _warnings(test.record)],
    )


def _scenario(name: str, tests: list[LoadTest]) -> ScenarioView:
    drawn = [
        serving_charts.distribution(tests, "ttft_ms", "time to first token"),
        serving_charts.distribution(tests, "tpot_ms", "time per output token"),
        serving_charts.distribution(tests, "gaps_ms", "gap between tokens"),
        serving_charts.tenants(tests),
    ]
    timelines = [chart for test in tests for chart in serving_charts.timeline(test)]
    return ScenarioView(name, tests, [chart for chart in drawn if chart is not None], timelines)


def _warnings(record: LoadRecord) -> list[str]:
    lines = []
    for run in record.runs:
        place = f"{record.scenario} of {record.server}, run {run.number}"
        if not run.valid:
            lines.append(f"{place} is not valid: {run.invalid_reason}")
        if run.steadiness.verdict == "not_steady":
            lines.append(f"{place} was not steady: {run.steadiness.reason}")
        elif run.steadiness.verdict == "too_short":
            lines.append(f"{place}: whether it was steady can't be told: {run.steadiness.reason}")
    return lines
