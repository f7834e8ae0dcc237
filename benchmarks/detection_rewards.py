"""How the reward's confidence sequence errs and what it needs, beside sequences in use elsewhere.

`difference_over_steps` is the vectorised twin of the function of that name in
`serving.confidence_sequence`; a test holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from benchmarks.detection_rules import Bools, Floats, Ints, first_look
from serving.confidence_sequence import LARGEST_VARIANCE, TIGHTEST_AT, UNSEEN

LOOKS = 1000
PER_LOOK = 100
BURN_IN = 100

Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


class Sums(Struct, frozen=True):
    """Rewards of one arm up to each look: number, sum and sum of squares, shape (runs, looks)."""

    count: Ints
    total: Floats
    squares: Floats

    @classmethod
    def of_votes(cls, up: Ints, down: Ints) -> Sums:
        """Return the sums of rewards 1 and 0."""
        return cls(up + down, up.astype(np.float64), up.astype(np.float64))

    @property
    def spread(self) -> Floats:
        """The sums of squared deviations from the mean."""
        return np.maximum(self.squares - self.total**2 / np.maximum(self.count, 1), 0.0)


def difference(canary: Sums, stable: Sums, alpha: float) -> tuple[Floats, Floats]:
    """Return the difference of means and the product's radius, infinite while an arm is empty."""
    return difference_over_steps(((canary, stable),), alpha)


def difference_over_steps(
    steps: Sequence[tuple[Sums, Sums]], alpha: float
) -> tuple[Floats, Floats]:
    """Return the same over the steps of a ramp, as `serving.confidence_sequence` has it."""
    total, weighted, variance = (np.zeros(steps[0][0].count.shape) for _ in range(3))
    for canary, stable in steps:
        seen = canary.count + stable.count
        weight = canary.count * stable.count / np.maximum(seen, 1)
        total += weight
        weighted += weight * (_mean(canary) - _mean(stable))
        variance += weight**2 * (_variance(canary) + _variance(stable))
    known = total > 0
    held = np.where(known, total, 1.0)
    reach = _radius(np.where(known, variance, 1.0) / held**2, alpha)
    return weighted / held, np.where(known, reach, np.inf)


def plain_asymptotic(canary: Sums, stable: Sums, alpha: float) -> tuple[Floats, Floats]:
    """The same boundary on the variances as seen, after 100 rewards in each arm."""
    n, m = np.maximum(canary.count, 2), np.maximum(stable.count, 2)
    variance = np.maximum(canary.spread / n**2 + stable.spread / m**2, 1e-12)
    reach = np.where(_known(canary, stable, BURN_IN), _radius(variance, alpha), np.inf)
    return _mean(canary) - _mean(stable), reach


def exact_mixture(canary: Sums, stable: Sums, alpha: float) -> tuple[Floats, Floats]:
    """Robbins' normal mixture for rewards in [-1, 1], exact: a sequence of alpha/2 for each arm."""

    def reach(count: Ints) -> Floats:
        n = np.maximum(count, 1)
        doubt = -2.0 * math.log(alpha / 2)
        prior = 500 / (doubt + math.log1p(doubt))
        return np.asarray(np.sqrt((n + prior) * (doubt + np.log((n + prior) / prior))) / n)

    total = reach(canary.count) + reach(stable.count)
    return _mean(canary) - _mean(stable), np.where(_known(canary, stable, 1), total, np.inf)


def naive_welch(canary: Sums, stable: Sums, alpha: float) -> tuple[Floats, Floats]:
    """Welch's interval for one look, p < 0.01, repeated at each look after 30 canary rewards."""
    n, m = np.maximum(canary.count, 2), np.maximum(stable.count, 2)
    variance = canary.spread / (n * (n - 1)) + stable.spread / (m * (m - 1))
    reach = 2.5758 * np.sqrt(variance)
    return _mean(canary) - _mean(stable), np.where(_known(canary, stable, 30), reach, np.inf)


SEQUENCES = {
    "ours": difference,
    "asymptotic, variance as seen, from 100 rewards": plain_asymptotic,
    "exact normal mixture per arm": exact_mixture,
    "Welch at each look": naive_welch,
}


def graded(mean: float) -> Draw:
    """Rewards around a mean with standard deviation 0.4, cut off at -1 and 1."""
    return lambda rng, shape: np.clip(rng.normal(mean, 0.4, shape), -1.0, 1.0)


def votes(mean: float) -> Draw:
    """Rewards 1 and -1 of this mean."""
    return lambda rng, shape: np.where(rng.random(shape) < (1.0 + mean) / 2, 1.0, -1.0)


def collect(
    rng: np.random.Generator, runs: int, weight: float, canary: Draw, stable: Draw
) -> tuple[Sums, Sums]:
    """Draw rewards, each the canary's with chance ``weight``, and sum them at every look."""
    shape = (runs, LOOKS * PER_LOOK)
    mine = rng.random(shape) < weight
    value = np.where(mine, canary(rng, shape), stable(rng, shape))
    return sums_at_looks(mine, value), sums_at_looks(~mine, value)


def excluded(
    canary: Sums, stable: Sums, alpha: float, name: str, truth: float = 0.0
) -> tuple[Bools, Ints]:
    """Return which runs ever excluded the truth, and canary rewards when they did, -1 if never."""
    mean, reach = SEQUENCES[name](canary, stable, alpha)
    at = first_look(np.abs(mean - truth) > reach)
    counts = canary.count[np.arange(len(at)), at]
    return at >= 0, np.where(at >= 0, counts, -1)


def sums_at_looks(mine: Bools, value: Floats) -> Sums:
    """Return the sums of the rewards marked as mine at every look."""
    ends = np.arange(PER_LOOK - 1, mine.shape[1], PER_LOOK)
    kept = np.where(mine, value, 0.0)
    return Sums(
        mine.cumsum(axis=1)[:, ends],
        kept.cumsum(axis=1)[:, ends],
        (kept * kept).cumsum(axis=1)[:, ends],
    )


def _radius(variance: Floats, alpha: float) -> Floats:
    doubt = -2.0 * math.log(alpha)
    prior = TIGHTEST_AT**-2 / (doubt + math.log1p(doubt))
    ahead = 1.0 / variance + prior
    return np.asarray(variance * np.sqrt(ahead * (doubt + np.log(ahead / prior))))


def _mean(sums: Sums) -> Floats:
    return np.asarray(sums.total / np.maximum(sums.count, 1))


def _variance(sums: Sums) -> Floats:
    n = np.maximum(sums.count, 1)
    return np.minimum((sums.spread + UNSEEN) / n, LARGEST_VARIANCE) / n


def _known(canary: Sums, stable: Sums, least: int) -> Bools:
    return (canary.count >= least) & (stable.count >= least)
