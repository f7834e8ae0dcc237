"""Off-policy estimates: what a candidate would have earned on answers that another policy drew.

Pure numpy, no model in sight. With w = pi(y|x) / mu(y|x), r the reward and c the cost (both of the
answer that was logged), q a prediction of the reward:

    IPS     mean(w·r)                                  Horvitz & Thompson 1952
    SNIPS   sum(w·r) / sum(w)                          Swaminathan & Joachims, NIPS 2015
    capped  SNIPS with min(w, 5)                       Ionides 2008; Bottou et al., JMLR 2013
    DR      mean(E_pi[q]) + sum(w·(r − q)) / sum(w)    Dudik et al., ICML 2011; self-normalised
    ESS     sum(w)² / sum(w²)                          Kong 1992

Intervals resample users, not answers, since the answers of one user hang together. Shape suffixes:
n answers, f features, k first decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from contracts.evidence import ERROR_SHARE, Interval, Support

Floats = NDArray[np.float64]

CAP = 5.0
RESAMPLES = 1000
FOLDS = 2
RIDGE = 3.0
LARGEST_LOG_WEIGHT = 20.0
"""Weights beyond e^20 say the same as this one: that the estimate rests on a single answer."""


class LoggedAnswers(Struct, frozen=True, kw_only=True):
    """Answers drawn by a logging policy, weighed for a candidate; arrays of length n.

    ``predicted_n`` is q(x, y) of the logged answer and ``expected_n`` its mean under the
    candidate; both zero make DR equal to SNIPS.
    """

    weights_n: Floats
    rewards_n: Floats
    costs_n: Floats
    users: tuple[str, ...]
    predicted_n: Floats
    expected_n: Floats


def part(log: LoggedAnswers, inside_n: NDArray[np.bool_]) -> LoggedAnswers:
    """Return the answers where ``inside_n`` holds."""
    return LoggedAnswers(
        weights_n=log.weights_n[inside_n],
        rewards_n=log.rewards_n[inside_n],
        costs_n=log.costs_n[inside_n],
        users=tuple(u for u, inside in zip(log.users, inside_n, strict=True) if inside),
        predicted_n=log.predicted_n[inside_n],
        expected_n=log.expected_n[inside_n],
    )


def importance_weights(candidate_n: Floats, logged_n: Floats) -> Floats:
    """Return pi/mu from the two log-probabilities of each answer, bounded by e^±20."""
    ratio_n = np.clip(candidate_n - logged_n, -LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)
    return np.asarray(np.exp(ratio_n), dtype=np.float64)


def support(weights_n: Floats, users: Sequence[str]) -> Support:
    """Return how much of the candidate the log covers.

    The mean weight is 1 for a log that covers all a candidate does; its standard error is
    mean·sqrt((n/ESS − 1)/n).
    """
    total, count = float(weights_n.sum()), len(weights_n)
    effective = total**2 / float((weights_n**2).sum())
    mean = total / count
    return Support(
        samples=count,
        users=len(set(users)),
        effective_samples=effective,
        largest_weight_share=float(weights_n.max()) / total,
        mean_weight=mean,
        mean_weight_error=mean * math.sqrt(max(count / effective - 1.0, 0.0) / count),
    )


def ips(log: LoggedAnswers) -> float:
    """Return the inverse propensity estimate of the mean reward."""
    return float((log.weights_n * log.rewards_n).mean())


def snips(log: LoggedAnswers) -> float:
    """Return the self-normalised estimate of the mean reward."""
    return float((log.weights_n * log.rewards_n).sum() / log.weights_n.sum())


def capped(log: LoggedAnswers) -> float:
    """Return the self-normalised estimate with weights cut at `CAP`: less spread, some bias."""
    weights_n = np.minimum(log.weights_n, CAP)
    return float((weights_n * log.rewards_n).sum() / weights_n.sum())


def doubly_robust(log: LoggedAnswers) -> float:
    """Return the doubly robust estimate of the mean reward."""
    residual_n = log.weights_n * (log.rewards_n - log.predicted_n)
    return float(log.expected_n.mean() + residual_n.sum() / log.weights_n.sum())


# --- intervals ---------------------------------------------------------------------------------


class Resampled(Struct, frozen=True, kw_only=True):
    """How often each answer is in each resample, shape b×n: whole users are drawn."""

    counts_bn: Floats

    def mean(self, values_n: Floats) -> Floats:
        """Return the mean of the values in every resample, 0 in one without any answer."""
        return self.ratio(values_n, np.ones_like(values_n))

    def ratio(self, upper_n: Floats, lower_n: Floats) -> Floats:
        """Return sum/sum in every resample, 0 where the lower sum is 0."""
        below_b = self.counts_bn @ lower_n
        safe_b = np.where(below_b > 0.0, below_b, 1.0)
        return np.asarray(np.where(below_b > 0.0, (self.counts_bn @ upper_n) / safe_b, 0.0))


def resample_users(users: Sequence[str], seed: int, resamples: int = RESAMPLES) -> Resampled:
    """Draw users with replacement (Efron 1979; by cluster: Davison & Hinkley 1997, 3.8)."""
    names, place_n = np.unique(np.array(users), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn_bu = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=resamples)
    return Resampled(counts_bn=drawn_bu[:, place_n].astype(np.float64))


def interval(value: float, resampled_b: Floats) -> Interval:
    """Return the value with one-sided percentile bounds on either side."""
    lower, upper = np.quantile(resampled_b, (ERROR_SHARE, 1.0 - ERROR_SHARE))
    return Interval(
        value=value, lower=float(lower), upper=float(upper), error=float(resampled_b.std(ddof=1))
    )


def snips_interval(log: LoggedAnswers, resampled: Resampled) -> Interval:
    """Return SNIPS with its bounds."""
    return interval(snips(log), resampled.ratio(log.weights_n * log.rewards_n, log.weights_n))


def ips_interval(log: LoggedAnswers, resampled: Resampled) -> Interval:
    """Return IPS with its bounds."""
    return interval(ips(log), resampled.mean(log.weights_n * log.rewards_n))


def doubly_robust_interval(log: LoggedAnswers, resampled: Resampled) -> Interval:
    """Return DR with its bounds; q is held fixed, so its own error is in them only as residual."""
    return interval(doubly_robust(log), _doubly_robust_b(log, resampled))


def difference_interval(log: LoggedAnswers, resampled: Resampled) -> Interval:
    """Return DR minus the mean reward that the logging policy earned, with bounds."""
    value = doubly_robust(log) - float(log.rewards_n.mean())
    return interval(value, _doubly_robust_b(log, resampled) - resampled.mean(log.rewards_n))


def cost_interval(log: LoggedAnswers, resampled: Resampled) -> Interval:
    """Return the self-normalised mean cost (costs in [0, 1]) with bounds.

    A resample of a log without a violation has none either, so the upper bound is at least that of
    `rate_upper_bound` at the effective sample size.
    """
    value = float((log.weights_n * log.costs_n).sum() / log.weights_n.sum())
    found = interval(value, resampled.ratio(log.weights_n * log.costs_n, log.weights_n))
    effective = support(log.weights_n, log.users).effective_samples
    upper = max(found.upper, rate_upper_bound(min(value, 1.0), effective))
    return Interval(value=value, lower=found.lower, upper=upper, error=found.error)


def rate_upper_bound(rate: float, samples: float) -> float:
    """Return the largest rate that ``samples`` do not contradict (Hoeffding 1963, eq. 2.1).

    It solves samples·kl(rate, bound) = ln(1/`ERROR_SHARE`); for no event in n it is exactly
    1 − `ERROR_SHARE`^(1/n), the rule of three.
    """
    wanted, low, high = -math.log(ERROR_SHARE) / samples, rate, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if _divergence(rate, middle) < wanted:
            low = middle
        else:
            high = middle
    return high


def value_lower_bound(log: LoggedAnswers, resampled: Resampled) -> float:
    """Return a bound on the mean reward that counts what was never seen as the worst, -1.

    V ≥ E[w·r] − (1 − mean w)_+, each term moved by its sampling error. What a softmax
    does practically never is missing from n answers, and shows as a mean weight below 1.
    """
    seen = ips_interval(log, resampled)
    return max(seen.lower - _missing(log, resampled), -1.0)


def cost_upper_bound(log: LoggedAnswers, resampled: Resampled) -> float:
    """Return a bound on the mean cost that counts what was never seen as the highest, 1.

    C ≤ E[w·c] + (1 − mean w)_+, each term moved by its sampling error.
    """
    weighted_n = log.weights_n * log.costs_n
    seen = interval(float(weighted_n.mean()), resampled.mean(weighted_n)).upper
    effective = support(log.weights_n, log.users).effective_samples
    seen = max(seen, rate_upper_bound(min(float(weighted_n.mean()), 1.0), effective))
    return min(seen + _missing(log, resampled), 1.0)


def _missing(log: LoggedAnswers, resampled: Resampled) -> float:
    found = interval(float(log.weights_n.mean()), resampled.mean(log.weights_n))
    return max(1.0 - found.lower, 0.0)


def _doubly_robust_b(log: LoggedAnswers, resampled: Resampled) -> Floats:
    residual_n = log.weights_n * (log.rewards_n - log.predicted_n)
    return resampled.mean(log.expected_n) + resampled.ratio(residual_n, log.weights_n)


def _divergence(rate: float, bound: float) -> float:
    """Return the Kullback-Leibler divergence of two Bernoulli rates, in nats."""
    found = 0.0
    if rate > 0.0:
        found += rate * math.log(rate / bound)
    if rate < 1.0:
        found += (1.0 - rate) * math.log((1.0 - rate) / max(1.0 - bound, 1e-300))
    return found


# --- the prediction q --------------------------------------------------------------------------

FeaturesOf = Callable[[NDArray[np.int64]], Floats]
"""Give the features, n×f, of every answer had its first decision been the one named per answer."""


class Foretold(Struct, frozen=True):
    """What a reward model says of each answer given, and of those that the candidate draws there.

    Both are 0 where it was not asked; where that is must not depend on answers and rewards.
    """

    given_n: Floats
    drawn_n: Floats


def cross_fitted(
    features_of: FeaturesOf,
    taken_n: NDArray[np.int64],
    candidate_nk: Floats,
    rewards_n: Floats,
    users: Sequence[str],
    foretold: Foretold | None = None,
) -> tuple[Floats, Floats]:
    """Return (q of the decision taken, mean q under the candidate), each predicted out of fold.

    Ridge regression in two folds of users (cross-fitting: Chernozhukov et al. 2018). It is a weak
    model, linear in the features; DR stays consistent whatever it predicts, it only gains little.
    ``candidate_nk`` are the candidate's probabilities of the k first decisions, each row summing
    to 1. What is ``foretold`` is one more feature: how far it is believed is fitted, too.
    """
    names = {name: place % FOLDS for place, name in enumerate(sorted(set(users)))}
    fold_n = np.array([names[user] for user in users])
    taken_nf = features_of(taken_n)
    decisions = candidate_nk.shape[1]
    each_knf = [features_of(np.full_like(taken_n, k)) for k in range(decisions)]
    if foretold is not None:
        taken_nf = np.column_stack([taken_nf, foretold.given_n])
        each_knf = [np.column_stack([each_nf, foretold.drawn_n]) for each_nf in each_knf]
    predicted_n, expected_n = np.zeros(len(taken_n)), np.zeros(len(taken_n))
    for fold in range(FOLDS):
        inside_n = fold_n == fold
        if inside_n.all() or not inside_n.any():
            continue
        coefficients_f = _ridge(taken_nf[~inside_n], rewards_n[~inside_n])
        predicted_n[inside_n] = taken_nf[inside_n] @ coefficients_f
        for k in range(decisions):
            expected_n[inside_n] += candidate_nk[inside_n, k] * (
                each_knf[k][inside_n] @ coefficients_f
            )
    return predicted_n, expected_n


def _ridge(features_nf: Floats, target_n: Floats) -> Floats:
    """Return the coefficients of penalised least squares (Hoerl & Kennard 1970)."""
    gram_ff = features_nf.T @ features_nf + RIDGE * np.eye(features_nf.shape[1])
    return np.asarray(np.linalg.solve(gram_ff, features_nf.T @ target_n))
