"""Ways in which a canary gate lies while nothing is wrong: wrong gates beside the right one.

In all of them canary and stable version are the same, so every rollback is a false one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from benchmarks.detection_rewards import (
    Sums,
    difference,
    difference_over_steps,
    graded,
    sums_at_looks,
)
from benchmarks.detection_rules import (
    Bools,
    Floats,
    Ints,
    Rule,
    absolute_sprt,
    conditional_share,
    draw,
    fixed_threshold,
    log_mean_exp,
    mean_weight,
    mixture_sprt,
)
from serving.eprocess import add_event

LOOKS = 500
PER_LOOK = 200

USERS = 4000
REQUESTS = 100_000
RATINGS = 20_000

MINUTES = 90
PER_MINUTE = 1200
MATURE = 30
"""Minutes of the attribution window: about the 95th percentile of the slower feedback."""


def attack(rng: np.random.Generator, runs: int) -> dict[str, Bools]:
    """An attack lifts both arms from 0.5 to 1.5 % between a tenth and half of the rollout."""
    rates = np.full(LOOKS, 0.005)
    rates[LOOKS // 10 : LOOKS // 2] = 0.015
    counts = draw(rng, runs, PER_LOOK, np.full(LOOKS, 0.05), rates, rates)
    rules: dict[str, Rule] = {
        "SPRT of the canary against 0.5 %": absolute_sprt(0.01, 0.005, 0.02),
        "fixed threshold 1 %, 3 failed windows": fixed_threshold(0.01, 3, 20),
        "ours": conditional_share(0.01),
    }
    return {name: _ever(rule(counts)) for name, rule in rules.items()}


def ramp(rng: np.random.Generator, runs: int) -> dict[str, Bools]:
    """The share rises 1, 5, 25, 50 % while the rate of both arms drifts from 0.3 to 1.2 %."""
    weight = np.repeat([0.01, 0.05, 0.25, 0.5], LOOKS // 4)
    rates = np.repeat([0.003, 0.005, 0.008, 0.012], LOOKS // 4)
    counts = draw(rng, runs, PER_LOOK, weight, rates, rates)
    rules: dict[str, Rule] = {
        "mSPRT of counts pooled over the steps": mixture_sprt(0.01, 0.005, 30),
        "e-process with the mean weight": mean_weight(0.01),
        "ours": conditional_share(0.01),
    }
    return {name: _ever(rule(counts)) for name, rule in rules.items()}


def reward_ramp(rng: np.random.Generator, runs: int) -> dict[str, Bools]:
    """The share rises as in `ramp` while the rewards of both arms drift from 0 to 0.6."""
    steps = []
    for weight, mean in ((0.01, 0.0), (0.05, 0.2), (0.25, 0.4), (0.5, 0.6)):
        shape = (runs, REQUESTS // 4)
        mine, value = rng.random(shape) < weight, graded(mean)(rng, shape)
        steps.append((sums_at_looks(mine, value), sums_at_looks(~mine, value)))
    canary, stable = (_one_after_another([step[arm] for step in steps]) for arm in (0, 1))
    compared = {
        "sequence of rewards pooled over the steps": difference(_pool(canary), _pool(stable), 0.01),
        "ours, each step apart": difference_over_steps(
            list(zip(canary, stable, strict=True)), 0.01
        ),
    }
    return {name: _excludes_zero(*found) for name, found in compared.items()}


def heavy_offenders(rng: np.random.Generator, runs: int) -> dict[str, Bools]:
    """One user in 200 violates at every second request, and all of their requests go to one arm."""
    every, first = (np.zeros(runs, dtype=np.bool_) for _ in range(2))
    for run in range(runs):
        arms = rng.random(USERS) < 0.05
        rates = np.where(rng.random(USERS) < 0.005, 0.5, 0.0025)
        users = rng.integers(USERS, size=REQUESTS)
        offenders = users[rng.random(REQUESTS) < rates[users]]
        earliest = np.sort(np.unique(offenders, return_index=True)[1])
        every[run] = _ever_reached(arms[offenders], 0.05, 0.01)
        first[run] = _ever_reached(arms[offenders[earliest]], 0.05, 0.01)
    return {"e-process of every violation": every, "ours, a user's first violation": first}


def heavy_raters(rng: np.random.Generator, runs: int) -> dict[str, Bools]:
    """A user's rewards resemble each other, some rate a hundred times as often as others, and all
    rewards of a user go to one arm."""
    shape = (runs, RATINGS)
    mine, first = (np.zeros(shape, dtype=np.bool_) for _ in range(2))
    value = np.zeros(shape)
    for run in range(runs):
        arms, opinion = rng.random(USERS) < 0.05, rng.uniform(-1.0, 1.0, USERS)
        activity = rng.lognormal(0.0, 1.5, USERS)
        users = rng.choice(USERS, size=RATINGS, p=activity / activity.sum())
        mine[run] = arms[users]
        first[run, np.unique(users, return_index=True)[1]] = True
        value[run] = np.clip(rng.normal(opinion[users], 0.3), -1.0, 1.0)
    counted = {
        "sequence of every reward": np.ones_like(first),
        "ours, a user's first reward": first,
    }
    found = {}
    for name, kept in counted.items():
        canary, stable = (sums_at_looks(arm & kept, value) for arm in (mine, ~mine))
        found[name] = _excludes_zero(*difference(canary, stable, 0.01))
    return found


def delayed_feedback(rng: np.random.Generator, runs: int) -> tuple[dict[str, Bools], Floats]:
    """Praise (1) comes after a median of 2 minutes, blame (0) after 12; 70 % of it is praise.

    20 requests a second, 60 % of them rated, canary 5 % from minute 0 beside a version that has
    served for long. A gate looks each minute whether its sequence excludes 0, either way: the
    mistake favours the canary where missing feedback is left out and harms it where missing counts
    as zero. Also returns the mean bias of the gates at minutes 5, 15, 30 and 60, in the order of
    the names, not a number while a gate has no data.
    """
    shape = (runs, MINUTES, MINUTES + 1)
    canary, stable = (rng.binomial(PER_MINUTE, share, size=shape[:2]) for share in (0.05, 0.95))
    up_c, down_c = _arrivals(rng, canary)
    up_s, down_s = _arrivals(rng, stable)
    history = rng.poisson(PER_MINUTE * 0.6 * np.array([0.7, 0.3]), size=(runs, MINUTES, 2))
    arrived = _by_arrival(up_c), _by_arrival(down_c)
    long_running = Sums.of_votes(history[..., 0].cumsum(axis=1), history[..., 1].cumsum(axis=1))
    answered = Sums.of_votes(*arrived)
    asked = canary.cumsum(axis=1)
    compared = {
        "arrived feedback, long-running control": (answered, long_running),
        "missing feedback counts as zero": (
            replace(answered, count=asked),
            replace(
                long_running,
                count=np.broadcast_to(PER_MINUTE * np.arange(1, MINUTES + 1), (runs, MINUTES)),
            ),
        ),
        "ours, matured cohorts of both arms": (
            _matured(up_c, down_c),
            _matured(up_s, down_s),
        ),
    }
    wrong, bias = {}, []
    for name, (mine, other) in compared.items():
        mean, reach = difference(mine, other, 0.01)
        wrong[name] = _excludes_zero(mean, reach)
        known = np.where(np.isfinite(reach), mean, np.nan)[:, [4, 14, 29, 59]]
        bias.append(known.mean(axis=0))
    return wrong, np.array(bias)


def _ever_reached(canary: Bools, weight: float, alpha: float) -> bool:
    """Whether E reached 1/alpha at any of these violations, looked at after each."""
    hit, miss = (np.array(add_event((), canary=arm, weight=weight)) for arm in (True, False))
    logs = np.where(canary[:, None], hit, miss).cumsum(axis=0)
    return bool((log_mean_exp(logs) >= -math.log(alpha)).any())


def _ever(crossed: Bools) -> Bools:
    return np.asarray(crossed.any(axis=1))


def _excludes_zero(mean: Floats, reach: Floats) -> Bools:
    return _ever(np.abs(mean) > reach)


def _one_after_another(steps: Sequence[Sums]) -> list[Sums]:
    """Lay the sums of steps on one time axis: nothing before a step, its last sums after it."""
    looks = steps[0].count.shape[1]

    def laid(part: Floats | Ints, at: int) -> Any:
        later = np.pad(part, ((0, 0), (0, (len(steps) - 1 - at) * looks)), mode="edge")
        return np.pad(later, ((0, 0), (at * looks, 0)))

    return [
        Sums(laid(step.count, at), laid(step.total, at), laid(step.squares, at))
        for at, step in enumerate(steps)
    ]


def _pool(steps: Sequence[Sums]) -> Sums:
    return Sums(
        np.sum([step.count for step in steps], axis=0),
        np.sum([step.total for step in steps], axis=0),
        np.sum([step.squares for step in steps], axis=0),
    )


def _arrivals(rng: np.random.Generator, requests: Ints) -> tuple[Ints, Ints]:
    """Return praise and blame by (run, minute of the request, minutes of delay)."""
    lags = []
    for share, median in ((0.6 * 0.7, 2.0), (0.6 * 0.3, 12.0)):
        edges = 1.0 - np.exp(-math.log(2.0) * np.arange(MINUTES + 1) / median)
        lags.append(share * np.diff(edges))
    chances = np.concatenate((*lags, [1.0 - sum(lag.sum() for lag in lags)]))
    votes = rng.multinomial(requests, chances)
    return votes[..., :MINUTES], votes[..., MINUTES : 2 * MINUTES]


def _by_arrival(votes: Ints) -> Ints:
    """Return how many votes had arrived by the end of each minute, shape (runs, minutes)."""
    minutes = np.arange(MINUTES)
    counted = np.zeros(votes.shape[:2], dtype=np.int64)
    for asked in minutes:
        counted[:, asked:] += votes[:, asked, : MINUTES - asked]
    return counted.cumsum(axis=1)


def _matured(up: Ints, down: Ints) -> Sums:
    """Return the votes within the window of requests at least the window old, at each minute."""
    sums = []
    for votes in (up, down):
        closed = votes[:, :, :MATURE].sum(axis=2).cumsum(axis=1)
        sums.append(np.pad(closed, ((0, 0), (MATURE, 0)))[:, :MINUTES])
    return Sums.of_votes(*sums)
