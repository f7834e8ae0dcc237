"""The gateway's counters and latencies, and their Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import get_args

from contracts.events import Rung

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
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
    "lost": "Events of served requests that found no room in the outbox.",
}


class Histogram:
    """Cumulative counts below fixed bounds in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        """Return the histogram's sample lines."""
        lines, total = [], 0
        for bound, count in zip([*map(str, SECONDS), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """All of one gateway's numbers since its start; for one event loop."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.answers: dict[tuple[str, str], int] = {}
        self.rungs: dict[str, int] = dict.fromkeys(get_args(Rung), 0)
        self.total_seconds = Histogram()
        self.first_token_seconds = Histogram()

    def count(self, name: str) -> None:
        """Add one to a counter of `COUNTERS`."""
        self.counts[name] += 1

    def answered(self, rung: str, arm: str, version: str) -> None:
        """Count an answer given by a version, on a rung of the ladder."""
        self.rungs[rung] += 1
        self.answers[arm, version] = self.answers.get((arm, version), 0) + 1

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
        for name, histogram in (
            ("headrace_request_seconds", self.total_seconds),
            ("headrace_first_token_seconds", self.first_token_seconds),
        ):
            lines += [f"# TYPE {name} histogram", *histogram.lines(name)]
        for name, value in gauges.items():
            lines += [f"# TYPE headrace_{name} gauge", f"headrace_{name} {value:g}"]
        return "\n".join(lines) + "\n"
