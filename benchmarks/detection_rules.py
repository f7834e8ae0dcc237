"""Rules that may roll a canary back, each judging all simulated runs at all looks at once.

The first rule is the product's own: its increments are those that `serving.eprocess` adds, and
sums of them are exact, so every value is the one that the controller would see. The others are
what is in use elsewhere, as their documentation describes them. All are one-sided: a canary that
is better is never rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from serving.eprocess import ODDS_RATIOS, add_event

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Z_ONE_SIDED_99 = 2.3263
_TABLE = 4096


class Counts(Struct, frozen=True):
    """Requests and violations of both arms up to each look; arrays of shape (runs, looks)."""

    canary: Ints
    stable: Ints
    canary_bad: Ints
    stable_bad: Ints
    weight: Floats
    """The canary's share in force before each look, shape (looks,)."""


Rule = Callable[[Counts], Bools]


def draw(
    rng: np.random.Generator,
    runs: int,
    per_look: int,
    weight: Floats,
    canary_rate: Floats,
    stable_rate: Floats,
) -> Counts:
    """Draw independent requests, each its own user, assigned with the weight of its look."""
    shape = (runs, len(weight))
    canary = rng.binomial(per_look, weight, size=shape)
    stable = per_look - canary
    return Counts(
        canary=canary.cumsum(axis=1),
        stable=stable.cumsum(axis=1),
        canary_bad=rng.binomial(canary, canary_rate).cumsum(axis=1),
        stable_bad=rng.binomial(stable, stable_rate).cumsum(axis=1),
        weight=weight,
    )


def log_wealth(counts: Counts) -> Floats:
    """Return the running logs of the e-process, shape (runs, looks, odds ratios)."""
    hit, miss = (
        np.array([add_event((), canary=canary, weight=weight) for weight in counts.weight.tolist()])
        for canary in (True, False)
    )
    canary, stable = (
        np.diff(bad, prepend=0, axis=1)[:, :, None]
        for bad in (counts.canary_bad, counts.stable_bad)
    )
    logs: Floats = (canary * hit + stable * miss).cumsum(axis=1)
    return logs


def log_mean_exp(logs: Floats) -> Floats:
    """Return the logarithm of E, the mean over the last axis."""
    top = logs.max(axis=-1)
    mixed: Floats = top + np.log(np.exp(logs - top[..., None]).mean(axis=-1))
    return mixed


def conditional_share(alpha: float) -> Rule:
    """The product's rule: E reaches 1/alpha."""
    return lambda counts: log_mean_exp(log_wealth(counts)) >= -math.log(alpha)


def dirichlet_mixture(alpha: float, concentration: float) -> Rule:
    """Lindon and Malek's multinomial test as in savvi: two-sided, a beta prior around the weight.

    Needs one weight for the whole run.
    """

    def rule(counts: Counts) -> Bools:
        weight = float(counts.weight[0])
        mine, other = concentration * weight, concentration * (1.0 - weight)
        x, y = counts.canary_bad, counts.stable_bad
        log_odds = (
            _log_gamma(mine)[x]
            + _log_gamma(other)[y]
            - _log_gamma(concentration)[x + y]
            - x * math.log(weight)
            - y * math.log(1.0 - weight)
        )
        high: Bools = x * (1.0 - weight) > y * weight
        return np.asarray((log_odds >= -math.log(alpha)) & high)

    return rule


def absolute_sprt(alpha: float, good: float, bad: float) -> Rule:
    """Wald's test of the canary's rate alone, ``good`` against ``bad``, with no control arm."""

    def rule(counts: Counts) -> Bools:
        clean = counts.canary - counts.canary_bad
        log_ratio = counts.canary_bad * math.log(bad / good) + clean * math.log(
            (1.0 - bad) / (1.0 - good)
        )
        return np.asarray(log_ratio >= -math.log(alpha))

    return rule


def fixed_threshold(limit: float, failures: int, looks: int) -> Rule:
    """A limit on the rate of each window of some looks, as Argo Rollouts and Flagger have it.

    The canary is rolled back at the ``failures``-th window whose rate is above the limit.
    """

    def rule(counts: Counts) -> Bools:
        ends = np.arange(looks - 1, counts.canary.shape[1], looks)
        bad = np.diff(counts.canary_bad[:, ends], prepend=0, axis=1)
        requests = np.diff(counts.canary[:, ends], prepend=0, axis=1)
        failed = (bad > limit * requests).cumsum(axis=1) >= failures
        crossed = np.zeros(counts.canary.shape, dtype=np.bool_)
        crossed[:, ends] = failed
        return crossed

    return rule


def naive_z(counts: Counts) -> Bools:
    """A pooled z test of two proportions, p < 0.01, repeated at each look."""
    difference, variance = _pooled(counts)
    return np.asarray((variance > 0) & (difference > Z_ONE_SIDED_99 * np.sqrt(variance)))


def naive_binomial(counts: Counts) -> Bools:
    """An exact binomial test on the arm of the violations, p < 0.01, repeated at each look.

    Needs one weight for the whole run.
    """
    total = counts.canary_bad + counts.stable_bad
    least = _least_significant(float(counts.weight[0]), int(total.max()), 0.01)
    return np.asarray(counts.canary_bad >= least[total])


def asymptotic_sequence(alpha: float, tuned_to: int, burn_in: int) -> Rule:
    """The asymptotic confidence sequence of the difference of rates, as in GrowthBook's gbstats."""

    def rule(counts: Counts) -> Bools:
        difference, variance = _separate(counts)
        seen = counts.canary + counts.stable
        two_sided = 2.0 * alpha
        doubt = -2.0 * math.log(two_sided)
        rho = (doubt + math.log1p(doubt)) / tuned_to
        reach = np.sqrt(
            variance * (seen * rho + 1.0) / (seen * rho) * (np.log(seen * rho + 1.0) + doubt)
        )
        enough = (counts.canary >= burn_in) & (variance > 0)
        return np.asarray(enough & (difference > reach))

    return rule


def mixture_sprt(alpha: float, spread: float, burn_in: int) -> Rule:
    """The mSPRT: a normal mixture, of this standard deviation, of differences of rates."""

    def rule(counts: Counts) -> Bools:
        difference, variance = _pooled(counts)
        enough = (counts.canary >= burn_in) & (variance > 0)
        v = np.where(enough, variance, 1.0)
        log_ratio = 0.5 * np.log(v / (v + spread**2)) + difference**2 * spread**2 / (
            2.0 * v * (v + spread**2)
        )
        return np.asarray(enough & (difference > 0) & (log_ratio >= -math.log(2.0 * alpha)))

    return rule


def mean_weight(alpha: float) -> Rule:
    """The e-process with the mean weight of all requests so far in place of each event's own."""

    def rule(counts: Counts) -> Bools:
        weight = (counts.canary / (counts.canary + counts.stable))[:, :, None]
        ratio = np.array(ODDS_RATIOS)
        logs = counts.canary_bad[:, :, None] * np.log(ratio) - (
            counts.canary_bad + counts.stable_bad
        )[:, :, None] * np.log(ratio * weight + 1.0 - weight)
        return np.asarray(log_mean_exp(logs) >= -math.log(alpha))

    return rule


def first_look(crossed: Bools) -> Ints:
    """Return per run the first look at which the rule crossed, -1 where it never did."""
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1), -1)


def _pooled(counts: Counts) -> tuple[Floats, Floats]:
    """The difference of rates and its variance were both arms alike."""
    n, m = np.maximum(counts.canary, 1), np.maximum(counts.stable, 1)
    rate = (counts.canary_bad + counts.stable_bad) / (n + m)
    return counts.canary_bad / n - counts.stable_bad / m, rate * (1 - rate) * (1 / n + 1 / m)


def _separate(counts: Counts) -> tuple[Floats, Floats]:
    """The difference of rates and its variance by each arm's own rate."""
    n, m = np.maximum(counts.canary, 1), np.maximum(counts.stable, 1)
    p, q = counts.canary_bad / n, counts.stable_bad / m
    return p - q, p * (1 - p) / n + q * (1 - q) / m


def _log_gamma(offset: float) -> Floats:
    """Return log(Gamma(offset + i) / Gamma(offset)) for i from 0."""
    return np.concatenate(([0.0], np.log(offset + np.arange(_TABLE)).cumsum()))


def _least_significant(weight: float, largest: int, level: float) -> Ints:
    """Return for each total the least number of canary violations whose upper tail is < level."""
    tails = np.zeros((largest + 1, largest + 2))
    row = np.array([1.0])
    for total in range(largest + 1):
        tails[total, : total + 1] = row[::-1].cumsum()[::-1]
        row = np.concatenate((row * (1.0 - weight), [0.0])) + np.concatenate(([0.0], row * weight))
    return np.asarray((tails >= level).sum(axis=1))
