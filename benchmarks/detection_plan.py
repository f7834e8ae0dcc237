"""What comes through a whole rollout: candidates that are equal, twice or four times as bad.

Every step of a plan ends when its canary requests are there and its rule is content, at once when
E reaches 1/alpha, and inconclusively when its requests are used up. E is carried across steps.
Each request is its own user, and rewards let everything pass: only safety is on trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from msgspec import Struct

from benchmarks.detection_rules import Bools, Floats, Ints, draw, log_mean_exp, log_wealth
from serving.eprocess import ODDS_RATIOS

PER_LOOK = 200
ALPHA = 0.004
"""The safety guardrail's part of a rollout's 1 %."""

WAIT = 72_000
"""Requests after which a step ends: an hour at 20 a second."""


class Step(Struct, frozen=True):
    """One step of a plan."""

    weight: float
    min_canary: int
    wait: int = WAIT


class Outcome(Struct, frozen=True):
    """What became of each candidate, and its canary requests until the end; arrays over runs."""

    promoted: Bools
    rolled_back: Bools
    inconclusive: Bools
    canary: Ints


PLANS = {
    "100 / 300 / 1,000 / 1,000": (
        *(Step(0.01, 100), Step(0.05, 300), Step(0.25, 1000), Step(0.5, 1000)),
    ),
    "300 / 1,000 / 1,500 / 2,000": (
        *(Step(0.01, 300), Step(0.05, 1000), Step(0.25, 1500), Step(0.5, 2000)),
    ),
    "300 / 1,000 / 4,000 / 8,000": (
        *(Step(0.01, 300), Step(0.05, 1000), Step(0.25, 4000), Step(0.5, 8000)),
    ),
    "one step, 5 %: 300": (Step(0.05, 300),),
    "one step, 5 %: 1,000": (Step(0.05, 1000),),
}

Content = Callable[[Floats], Bools]


def no_alarm(logs: Floats) -> Bools:
    """Anything below 1/alpha passes."""
    return np.asarray(log_mean_exp(logs) < -math.log(ALPHA))


def silent(logs: Floats) -> Bools:
    """E of at most 1 passes."""
    return np.asarray(log_mean_exp(logs) <= 0.0)


def ruled_out(times: float, beta: float) -> Content:
    """Passes what is silent and shown, at level beta, not to be this many times worse.

    The twin of `serving.eprocess.e_value_against`.
    """
    column = max(j for j, ratio in enumerate(ODDS_RATIOS) if ratio <= times)

    def content(logs: Floats) -> Bools:
        return silent(logs) & (logs[..., column] <= math.log(beta))

    return content


RULES: dict[str, tuple[Content, Content]] = {
    "E < 1/alpha": (no_alarm, no_alarm),
    "E <= 1": (silent, silent),
    "E <= 1, at the end fourfold ruled out": (silent, ruled_out(4.0, 0.05)),
    "E <= 1, at the end twofold ruled out": (silent, ruled_out(2.0, 0.05)),
}
"""What a step asks, and what the last one asks."""


def follow(
    rng: np.random.Generator,
    runs: int,
    plan: tuple[Step, ...],
    rule: tuple[Content, Content],
    canary_rate: float,
    stable_rate: float,
) -> Outcome:
    """Take candidates through a plan, each until its end."""
    logs = np.zeros((runs, len(ODDS_RATIOS)))
    used = np.zeros(runs, dtype=np.int64)
    alive, harmful = np.ones(runs, dtype=np.bool_), np.zeros(runs, dtype=np.bool_)
    for step in plan:
        content = rule[step is plan[-1]]
        ended, alarm, logs, seen = _take(rng, logs, step, content, (canary_rate, stable_rate))
        used += np.where(alive, seen, 0)
        harmful |= alive & alarm
        alive &= ended
    return Outcome(alive, harmful, ~alive & ~harmful, used)


def _take(
    rng: np.random.Generator,
    logs: Floats,
    step: Step,
    content: Content,
    rates: tuple[float, float],
) -> tuple[Bools, Bools, Floats, Ints]:
    """Return per run: passed, alarmed, the logs at the step's end, its canary requests."""
    runs, looks = len(logs), step.wait // PER_LOOK
    counts = draw(rng, runs, PER_LOOK, *(np.full(looks, value) for value in (step.weight, *rates)))
    path = logs[:, None] + log_wealth(counts)
    alarm = log_mean_exp(path) >= -math.log(ALPHA)
    done = alarm | ((counts.canary >= step.min_canary) & content(path))
    at = np.where(done.any(axis=1), done.argmax(axis=1), looks - 1)
    row = np.arange(runs)
    alarmed = alarm[row, at]
    return done[row, at] & ~alarmed, alarmed, path[row, at], counts.canary[row, at]
