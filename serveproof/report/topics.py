"""The topics of the page, in their order: a line each. One that a machine has nothing for says why in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serveproof.report.views import MachineView


@dataclass(frozen=True)
class Topic:
    """One topic: its anchor, its title, its template.

    has: whether a machine has something to show; None for a topic of the whole page, which shows itself.
    otherwise: why a machine has nothing, in one line; what the collecting of its results said comes before it, where
    absent names that.
    """

    id: str
    title: str
    template: str
    has: Callable[[MachineView], object] | None = None
    otherwise: str = ""
    absent: str = ""

    def reason(self, view: MachineView) -> str:
        """Why a machine has nothing here; '' where it has something."""
        if self.has is None or self.has(view):
            return ""
        told = [one.reason for one in view.machine.absent if self.absent and one.what.startswith(self.absent)]
        return "; ".join(told) or self.otherwise


TOPICS = (
    Topic("overview", "Overview", "overview.html.j2"),
    Topic("machines", "Machines", "machines.html.j2"),
    Topic("pairs", "Pairs", "pairs.html.j2", lambda view: view.rows or view.pairs,
          "no pair was run on this machine", "Pairs"),
    Topic("ladder", "Ladder", "ladder.html.j2", lambda view: view.ladders,
          "no engine/ladder*.json: rule ladder did not run, or ladder.model is none", "Ladder"),
    Topic("engine", "Engine", "engine.html.j2", lambda view: view.machine.loads,
          "no engine/load*.json: scripts/engine_benchmark.py was not run", "Engine under load"),
    Topic("serving", "Serving", "serving.html.j2", lambda view: view.serving,
          "no load test: the rules of serving did not run, or serving.mode is none", "Load test"),
    Topic("accuracy", "Accuracy", "accuracy.html.j2", lambda view: view.machine.perplexity or view.accuracy,
          "perplexity was not measured", "Accuracy"),
    Topic("ranks", "Several GPUs", "ranks.html.j2", lambda view: view.ranks,
          "no ranks/*.json: one rank only, or validation.ranks is none", "Several ranks"),
    Topic("moe", "Experts", "moe.html.j2", lambda view: view.expert_pairs or view.expert_ranks,
          "no pair of experts and no script of experts was run"),
    Topic("profiles", "Profiles", "profiles.html.j2", lambda view: view.decoder or view.profiled,
          "nothing was profiled: profile.mode is none, or the rules did not run", "Decoder profile"),
    Topic("telemetry", "Telemetry", "telemetry.html.j2",
          lambda view: view.jobs or view.telemetry or view.machine.hardware.states,
          "no accelerator to read, no load test, and no job noted what it used"),
    Topic("history", "History", "history.html.j2"),
    Topic("left-out", "Left out", "left_out.html.j2",
          lambda view: view.machine.absent or [row for row in view.rows if row.measured is None],
          "nothing: everything that was asked for ran and passed verification"),
    Topic("provenance", "Provenance", "provenance.html.j2"),
    Topic("method", "Method", "method.html.j2"),
)  # fmt: skip
NO_HISTORY = "no run before this one: every run is kept in results/history/, and trends are drawn from two on"


def nothing_in(topic: Topic, views: Sequence[MachineView]) -> bool:
    """Whether no machine has anything for it."""
    return topic.has is not None and not any(topic.has(view) for view in views)
