"""What users let a platform know about an answer: partial, noisy and late, never the utility.

A model of feedback, not of any product: it sees a verdict and draws signals from it.
"""

from __future__ import annotations

import random
from typing import Any

from msgspec import Struct

from contracts.events import FeedbackKind, Message
from simulator.product import Signal, Verdict


class Habits(Struct, frozen=True, kw_only=True):
    """How often, how truly and how late users react. Delays are exponential with these means."""

    rating: float = 0.25
    rating_by_feeling: float = 0.3
    noise: float = 0.4
    content_from: float = 0.2
    re_ask: float = 0.5
    correction: float = 0.1
    report: float = 0.08
    report_below: float = -0.4
    tool_seconds: float = 0.5
    rating_seconds: float = 2.0
    re_ask_seconds: float = 1.0
    correction_seconds: float = 3.0
    report_seconds: float = 3.0


USUAL = Habits()


def draw_signals(
    verdict: Verdict,
    correction: Message | None,
    rng: random.Random,
    *,
    bias: float = 0.0,
    tool_worked: bool | None = None,
    habits: Habits = USUAL,
) -> list[Signal]:
    """Return the signals that follow one answer, in no order; often none.

    ``correction`` is what should have been said, None when that was said. ``tool_worked`` None
    means that no tool ran. A call that ran well says little, so its score is small; one that could
    not run says much. Strong feelings are rated more often than weak ones: ratings are not missing
    at random.
    """
    utility = verdict.utility
    signals: list[Signal] = []

    def send(kind: FeedbackKind, mean_seconds: float, **what: Any) -> None:
        delay = rng.expovariate(1.0 / mean_seconds)
        signals.append(Signal(kind=kind, delay_seconds=delay, **what))

    if tool_worked is not None:
        send("outcome", habits.tool_seconds, name="tool", score=0.3 if tool_worked else -1.0)
    if rng.random() < habits.rating + habits.rating_by_feeling * abs(utility):
        content = utility + bias + rng.gauss(0.0, habits.noise) > habits.content_from
        send("rating", habits.rating_seconds, score=1.0 if content else -1.0)
    if utility < 0 and rng.random() < habits.re_ask:
        send("outcome", habits.re_ask_seconds, name="re-ask", score=-1.0)
    if correction is not None and rng.random() < habits.correction:
        send("correction", habits.correction_seconds, correction=correction)
    if utility < habits.report_below and rng.random() < habits.report:
        send("report", habits.report_seconds, reason="not what I asked for")
    return signals
