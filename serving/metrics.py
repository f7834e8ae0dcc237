"""The gateway's counters and latencies, and their Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

from contracts.events import GuardReport, Rung

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LAYER_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.01, 0.1, 1.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "requests": "Chat requests answered or refused after validation.",
    "failed": "Chat requests that no version answered.",
    "refused": "Requests refused as invalid, oversized or one too many.",
    "fallbacks": "Chat requests answered by another version than the assigned one.",
    "disconnects": "Streams whose client went away before the end.",
    "feedback": "Feedback accepted.",
    "feedback_refused": "Feedback refused: invalid, wrong token or no room.",
    "features_missing": "Chat requests answered without features from the store.",
    "shadow_copies": "Questions that a candidate in the shadow phase was asked, unseen by users.",
    "shadow_dropped": "Shadow copies dropped because too many were waiting.",
    "guard_model_failed": "Questions that the guard model did not judge in time.",
    "lost": "Events of served requests that found no room in the outbox.",
}


class Histogram:
    """Cumulative counts below fixed bounds in seconds."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, label: str = "") -> list[str]:
        """Return the histogram's sample lines; ``label`` is one, as ``name="value"``."""
        lines, total = [], 0
        before, alone = (f"{label},", f"{{{label}}}") if label else ("", "")
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{before}le="{bound}"}} {total}')
        return [*lines, f"{name}_sum{alone} {self._sum:.6f}", f"{name}_count{alone} {total}"]


class Metrics:
    """All of one gateway's numbers since its start; for one event loop."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.answers: dict[tuple[str, str], int] = {}
        self.rungs: dict[str, int] = dict.fromkeys(get_args(Rung), 0)
        self.total_seconds = Histogram()
        self.first_token_seconds = Histogram()
        self.guard_actions: dict[str, int] = {}
        self.guard_findings: dict[str, int] = {}
        self.layer_seconds: dict[str, Histogram] = {}

    def count(self, name: str) -> None:
        """Add one to a counter of `COUNTERS`."""
        self.counts[name] += 1

    def answered(self, rung: str, arm: str, version: str) -> None:
        """Count an answer given by a version, on a rung of the ladder."""
        self.rungs[rung] += 1
        self.answers[arm, version] = self.answers.get((arm, version), 0) + 1

    def guarded(self, report: GuardReport) -> None:
        """Count what the guard did, what it found, and the time of each of its layers."""
        self.guard_actions[report.action] = self.guard_actions.get(report.action, 0) + 1
        for finding in report.findings:
            category = finding.category
            self.guard_findings[category] = self.guard_findings.get(category, 0) + 1
        for layer, seconds in report.layer_seconds.items():
            if layer not in self.layer_seconds:
                self.layer_seconds[layer] = Histogram(LAYER_SECONDS)
            self.layer_seconds[layer].observe(seconds)

    def text(self, gauges: Mapping[str, float], skipped: Collection[str] = ()) -> str:
        """Return everything in Prometheus text; ``gauges`` are values of this moment.

        ``skipped`` are the versions whose breakers are open.
        """
        lines: list[str] = []
        for name, meaning in COUNTERS.items():
            full = f"headrace_{name}_total"
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} counter"]
            lines.append(f"{full} {self.counts[name]}")
        lines.append("# TYPE headrace_answers_total counter")
        for (arm, version), count in sorted(self.answers.items()):
            lines.append(f'headrace_answers_total{{arm="{arm}",version="{version}"}} {count}')
        lines.append("# TYPE headrace_rung_answers_total counter")
        for rung, count in self.rungs.items():
            lines.append(f'headrace_rung_answers_total{{rung="{rung}"}} {count}')
        lines.append("# TYPE headrace_breaker_open gauge")
        lines += [f'headrace_breaker_open{{version="{version}"}} 1' for version in skipped]
        lines += self._guard_lines()
        for name, histogram in (
            ("headrace_request_seconds", self.total_seconds),
            ("headrace_first_token_seconds", self.first_token_seconds),
        ):
            lines += [f"# TYPE {name} histogram", *histogram.lines(name)]
        for name, value in gauges.items():
            lines += [f"# TYPE headrace_{name} gauge", f"headrace_{name} {value:g}"]
        return "\n".join(lines) + "\n"

    def _guard_lines(self) -> list[str]:
        lines = ["# TYPE headrace_guard_actions_total counter"]
        for action, count in sorted(self.guard_actions.items()):
            lines.append(f'headrace_guard_actions_total{{action="{action}"}} {count}')
        lines.append("# TYPE headrace_guard_findings_total counter")
        for category, count in sorted(self.guard_findings.items()):
            lines.append(f'headrace_guard_findings_total{{category="{category}"}} {count}')
        lines.append("# TYPE headrace_guard_layer_seconds histogram")
        for layer, histogram in sorted(self.layer_seconds.items()):
            lines += histogram.lines("headrace_guard_layer_seconds", f'layer="{layer}"')
        return lines
