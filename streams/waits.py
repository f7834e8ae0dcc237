"""How long the declared signals are waited for, in event time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from msgspec import Struct

from contracts.events import Feedback
from contracts.settings import SIGNALS, Streams

READS: Mapping[str, tuple[str, ...]] = {
    "rating": ("rating",),
    "acceptance": ("acceptance",),
    "correction": ("correction",),
    "report": ("report",),
    "dwell": ("dwell",),
    "outcome": ("outcome", "tool", "build", "re-ask"),
}
"""Which built-in signals read a kind of feedback; those of other packages may read any."""

BETWEEN = ("rating", "report", "outcome", "tool", "build", "re-ask", "follow-up")
"""Signals that another decision of the session, or feedback on the session, can change."""


class Waits(Struct, frozen=True, kw_only=True):
    """How long after a decision something bears on its reward, in seconds.

    ``window_seconds`` until a reward is first given, ``by_kind`` for feedback of a kind to count,
    ``near_seconds`` for other decisions and feedback on the session, ``revision_seconds`` for what
    counted to be taken back, ``unclaimed_seconds`` for decisions of earlier feedback. What is
    named in ``final`` is waited for and nothing else.
    """

    window_seconds: float
    by_kind: Mapping[str, float]
    near_seconds: float
    revision_seconds: float
    unclaimed_seconds: float
    final: frozenset[str] = frozenset()

    @property
    def window(self) -> timedelta:
        """Return how long a decision's first reward is waited for."""
        return timedelta(seconds=self.window_seconds)

    @property
    def near(self) -> timedelta:
        """Return how long after a decision another one of the session can change its reward."""
        return timedelta(seconds=self.near_seconds)

    def reach(self, feedback: Feedback) -> timedelta:
        """Return how long after a decision such feedback on it can count."""
        if feedback.kind == "retraction":
            longest = max([self.window_seconds, *self.by_kind.values()])
            return timedelta(seconds=longest + self.revision_seconds)
        return timedelta(seconds=self.by_kind.get(feedback.kind, self.window_seconds))

    def is_final(self, feedback: Feedback) -> bool:
        """Say whether a signal closes its decision's window: its kind, or ``kind:name``."""
        return feedback.kind in self.final or f"{feedback.kind}:{feedback.name}" in self.final


def waits_of(settings: Streams) -> Waits:
    """Return how long the declared signals are waited for."""
    window = settings.window_seconds
    delays = {name: part.delay_seconds or window for name, part in settings.reward.items()}
    foreign = [delay for name, delay in delays.items() if name not in SIGNALS]
    between = [delays[name] for name in BETWEEN if name in delays]
    return Waits(
        window_seconds=window,
        by_kind={
            kind: max(
                [*(delays[name] for name in names if name in delays), *foreign], default=window
            )
            for kind, names in READS.items()
        },
        near_seconds=max([*between, *foreign], default=window),
        revision_seconds=settings.revision_seconds,
        unclaimed_seconds=settings.unclaimed_seconds,
        final=frozenset(settings.final_signals),
    )
