"""The reward's confidence sequence: bounds of the canary's mean reward minus the stable one's.

The bounds may be looked at after every reward: with probability about ``1 - alpha`` the true
difference lies between them at all looks together. They come from counts, sums and sums of squares
alone, so they depend on the *set* of rewards and the state of a rollout stays small.

Source: the asymptotic confidence sequence of I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy
and A. Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences" (arXiv
2103.06476), in the time scale of information (C. Jennison and B. W. Turnbull, "Group Sequential
Methods", 1999): the difference divided by its variance behaves as a Brownian motion with drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

TIGHTEST_AT = 0.02
"""The standard error of the difference at which the sequence is tightest."""

UNSEEN = 12.0
"""Added to each arm's sum of squared deviations: three unseen rewards a whole range (2) away.

Equal rewards do not prove that there is no other. In the Poisson regime of rare bad rewards the
number not yet seen is about ln(1/alpha), of which three in the variance cover a bound of 4 to 5
standard errors.
"""

LARGEST_VARIANCE = 1.0
"""No reward in [-1, 1] varies more."""

_GRID = 2.0**16


class RewardSums(Struct, frozen=True):
    """The rewards of one arm: their number, sum and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0


class Interval(Struct, frozen=True):
    """Mean reward of the canary minus that of the stable arm, and its bounds, within [-2, 2]."""

    mean: float
    lower: float
    upper: float


UNKNOWN = Interval(mean=0.0, lower=-2.0, upper=2.0)
"""What is known of a difference while an arm has no reward."""


def add_reward(sums: RewardSums, value: float) -> RewardSums:
    """Return the sums with one more reward in [-1, 1].

    It is rounded down to a multiple of 2^-16: two million such values and squares add exactly, so
    any order gives the same bytes. Raises ValueError for a value outside.
    """
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"reward {value}: give a value from -1 to 1")
    kept = math.floor(value * _GRID) / _GRID
    return RewardSums(sums.count + 1, sums.total + kept, sums.squares + kept * kept)


def reward_difference(canary: RewardSums, stable: RewardSums, alpha: float) -> Interval:
    """Return the two-sided sequence of the difference for rewards of one canary weight.

    Asymptotic, not exact: ``alpha`` is held in the limit of many rewards. For few, each arm's
    variance is taken as larger than it was seen (`UNSEEN`), at most `LARGEST_VARIANCE`;
    `benchmarks.detection` measures what is left. Each bound alone errs with probability about
    ``alpha / 2``. `UNKNOWN` while an arm is empty. Raises ValueError for an alpha outside (0, 1).
    """
    return difference_over_steps(((canary, stable),), alpha)


def difference_over_steps(steps: Sequence[tuple[RewardSums, RewardSums]], alpha: float) -> Interval:
    """Return the sequence over the steps of a rollout, each (canary, stable) at its own weight.

    Never pool the sums of steps: when rewards drift while the weight rises, the canary's share of
    good times differs and the pooled difference is biased (Simpson). Here each step compares its
    own arms and counts by its harmonic number of rewards, ``n m / (n + m)``. Steps in which an arm
    is empty say nothing.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha}: give a probability between 0 and 1")
    total = weighted = variance = 0.0
    for canary, stable in steps:
        if not canary.count or not stable.count:
            continue
        weight = canary.count * stable.count / (canary.count + stable.count)
        total += weight
        weighted += weight * (canary.total / canary.count - stable.total / stable.count)
        variance += weight**2 * (_variance_of_mean(canary) + _variance_of_mean(stable))
    if not total:
        return UNKNOWN
    mean = weighted / total
    reach = radius(variance / total**2, alpha)
    return Interval(mean, max(mean - reach, -2.0), min(mean + reach, 2.0))


def radius(variance: float, alpha: float) -> float:
    """Return half the width of the two-sided sequence at this variance of the estimate.

    The normal mixture boundary for Brownian motion at the time ``1 / variance``.
    """
    information = 1.0 / variance
    doubt = -2.0 * math.log(alpha)
    prior = TIGHTEST_AT**-2 / (doubt + math.log1p(doubt))
    ahead = information + prior
    return math.sqrt(ahead * (doubt + math.log(ahead / prior))) / information


def _variance_of_mean(sums: RewardSums) -> float:
    spread = max(sums.squares - sums.total * sums.total / sums.count, 0.0)
    return min((spread + UNSEEN) / sums.count, LARGEST_VARIANCE) / sums.count
