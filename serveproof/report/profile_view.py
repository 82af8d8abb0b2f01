"""What the report shows of profiles: a pair's cases with both sides beside each other, a decoder's points."""

from __future__ import annotations

from dataclasses import dataclass

from serveproof.profile_records import DecoderProfileRecord, Profile, ProfileCase, ProfileRecord
from serveproof.report import numbers, profile_charts
from serveproof.report.charts import Chart
from serveproof.results import Ceilings, MeasureRecord

LONGEST_LINE = 240


@dataclass(frozen=True)
class SideView:
    """One closure's profile with its icicle and what it says beside its table: (name, value)."""

    label: str
    profile: Profile
    icicle: Chart | None
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class CaseView:
    """One case's sides, and the charts that hold both."""

    case: str
    sides: list[SideView]
    charts: list[Chart]


@dataclass(frozen=True)
class ProfileView:
    """A record with its cases; `stale` where the pair's code is another than the measured one."""

    mode: str
    notes: list[str]
    cases: list[CaseView]
    took: str
    stale: bool


def view(record: ProfileRecord, measured: MeasureRecord | None, ceilings: Ceilings) -> ProfileView:
    """A pair's profile as the page shows it."""
    took = f"{numbers.figure(record.seconds, 's')}"
    if record.measure_seconds:
        took += f"; the pair's measurement took {numbers.figure(record.measure_seconds, 's')}"
        if record.mode == "minimal" and record.seconds > record.measure_seconds:
            took += ", less than the profile, which should at most double it"
    return ProfileView(
        mode=record.mode.replace("_", " "),
        notes=record.notes,
        cases=[_case(case, ceilings) for case in record.cases],
        took=took,
        stale=measured is not None and measured.code_sha != record.code_sha,
    )


def decoder(record: DecoderProfileRecord, ceilings: Ceilings) -> list[CaseView]:
    """A decoder's points, each as a case with one side."""
    found = []
    for point in record.points:
        name = f"{point.phase}, batch {point.batch}, context {point.context}"
        chart = profile_charts.kernels({"optimized": point.profile}, ceilings, name)
        found.append(CaseView(name, [_side("", name, point.profile)], [chart] if chart else []))
    return found


def _case(case: ProfileCase, ceilings: Ceilings) -> CaseView:
    profiles = {"baseline": case.baseline, "optimized": case.optimized}
    drawn = [profile_charts.kernels(profiles, ceilings, case.case), profile_charts.memory(profiles, case.case)]
    sides = [_side(label, f"{case.case}, {label}", one) for label, one in profiles.items()]
    return CaseView(case.case, sides, [chart for chart in drawn if chart is not None])


def _side(label: str, name: str, profile: Profile) -> SideView:
    return SideView(label, profile, profile_charts.icicle(profile, name), facts(profile))


def facts(profile: Profile) -> list[tuple[str, str]]:
    """A profile's figures beside its table."""
    if profile.status != "passed":
        last = (profile.reason.strip().splitlines() or ["no reason was given"])[-1]
        return [(profile.status.replace("_", " "), last[:LONGEST_LINE])]
    rows = [
        ("back end", profile.backend or "–"),
        ("a call", f"{numbers.figure(profile.unprofiled_ms, 'ms')}, {profile.calls} in a row"),
        ("with the profiler", numbers.figure(profile.profiled_ms, "ms")),
    ]
    if profile.launches:
        one = profile.launches
        bound = "bound by launches" if one.launch_bound else "not bound by launches"
        rows.append(("launches", f"{bound}: the device idles {numbers.significant(100 * one.idle_share)} % of a call"))
        rows.append(
            ("kernels", f"{numbers.significant(one.kernels)} a call, {numbers.figure(one.busy_ms, 'ms')} of work")
        )
    for wait in profile.waits:
        place = " › ".join(wait.stack[-4:]) or "outside Python"
        rows.append(("waits", f"{wait.what}, {numbers.significant(wait.count)} a call, in {place}"))
    if not profile.waits:
        rows.append(("waits", "none: nothing makes the host wait for the device"))
    if profile.memory:
        one_call = profile.memory
        rows.append(
            (
                "allocations",
                f"{numbers.significant(one_call.allocations)} a call, "
                f"{numbers.figure(one_call.allocated_bytes, 'bytes')} in all, at most "
                f"{numbers.figure(one_call.peak_bytes, 'bytes')} at once",
            )
        )
        rows += [(key.replace("_", " "), numbers.metric(value)) for key, value in one_call.state.items()]
    if profile.trace:
        rows.append(
            ("trace", f"traces/{profile.trace}, {numbers.figure(profile.trace_bytes, 'bytes')}; ui.perfetto.dev")
        )
    if profile.left_out:
        rows.append(("left out", f"{profile.left_out} rows of {numbers.figure(profile.left_out_ms, 'ms')} together"))
    return rows + [("note", note) for note in profile.notes]
