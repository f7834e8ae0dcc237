"""The truth about a policy version on held-out questions, for whoever samples its answers.

It asks nobody itself: give it an answer for each held-out question of a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from msgspec import Struct

from contracts.errors import SettingsError
from contracts.events import Message
from simulator.product import Product, Prompt


class Scores(Struct, frozen=True, kw_only=True):
    """Means over held-out questions, each with its standard error.

    ``violation_rate`` is over all questions, ``right_by_intent`` the rate of right actions in
    each slice: a mean can hide a slice that collapsed.
    """

    questions: int
    utility: float
    utility_se: float
    violation_rate: float
    violation_rate_se: float
    right_rate: float
    right_rate_se: float
    right_by_intent: dict[str, float]


def score(product: Product, prompts: Sequence[Prompt], answers: Sequence[Message]) -> Scores:
    """Judge one answer per question; SettingsError when there are fewer than two."""
    if len(prompts) < 2 or len(prompts) != len(answers):
        raise SettingsError(
            f"{len(prompts)} questions and {len(answers)} answers; give two or more, in pairs"
        )
    verdicts = [product.judge(p, answer) for p, answer in zip(prompts, answers, strict=True)]
    slices: dict[str, list[float]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        slices.setdefault(prompt.intent, []).append(float(verdict.right_action))
    utility = [verdict.utility for verdict in verdicts]
    violation = [float(verdict.violation) for verdict in verdicts]
    right = [float(verdict.right_action) for verdict in verdicts]
    return Scores(
        questions=len(prompts),
        utility=fmean(utility),
        utility_se=_standard_error(utility),
        violation_rate=fmean(violation),
        violation_rate_se=_standard_error(violation),
        right_rate=fmean(right),
        right_rate_se=_standard_error(right),
        right_by_intent={intent: fmean(values) for intent, values in sorted(slices.items())},
    )


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))
