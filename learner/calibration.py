"""Turns a score into a probability that can be believed, and says how far it can be.

Pure numpy. A score s becomes p = σ(slope·s + bias) (Platt 1999; with bias 0 temperature scaling,
Guo et al., ICML 2017); of a pair p is the chance that the first is better, σ(slope·(s₁ − s₂)).
Shape suffix: n answers or pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from learner.raters import Floats, Proportion, Raters, proportion

BINS = 10
_PENALTY = 1e-3
_STEPS = 50
_LARGEST_LOGIT = 30.0


class Calibration(Struct, frozen=True):
    """p = σ(slope·score + bias)."""

    slope: float = 1.0
    bias: float = 0.0

    def probability(self, scores_n: Floats) -> Floats:
        """Return the chance that each answer is a good one."""
        return sigmoid(self.slope * scores_n + self.bias)

    def value(self, scores_n: Floats) -> Floats:
        """Return the expected reward of each answer, in [-1, 1]."""
        return np.asarray(2.0 * self.probability(scores_n) - 1.0)

    def preference(self, differences_n: Floats) -> Floats:
        """Return the chance that the first of each pair is better."""
        return sigmoid(self.slope * differences_n)


class Errors(Struct, frozen=True, kw_only=True):
    """How a model does on answers or pairs it was neither trained nor calibrated on.

    ``accuracy``: how often the better of a pair, or the sign of a reward, was told; None where no
    reward has one. ``ece`` and ``brier`` are the errors of its probabilities, ``raw_*`` those
    before the calibration.
    ``spread`` is the mean standard deviation among the members, of values in [-1, 1].
    """

    accuracy: Proportion | None
    ece: float
    brier: float
    raw_ece: float
    raw_brier: float
    spread: float


def sigmoid(logits_n: Floats) -> Floats:
    """Return 1 / (1 + e^−x), without overflow."""
    bounded_n = np.clip(logits_n, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    return np.asarray(1.0 / (1.0 + np.exp(-bounded_n)))


class Labels(Struct, frozen=True):
    """What was told of scored answers, ``good_n`` in [0, 1], and of pairs.

    ``differences_n`` are the score of the better minus that of the worse answer of each pair,
    ``compared_2n`` the scores of both.
    """

    scores_n: Floats
    good_n: Floats
    rated_by: Raters
    compared_2n: Floats
    paired_by: Raters

    @property
    def differences_n(self) -> Floats:
        """Return how much higher the better one of each pair is scored."""
        return np.asarray(self.compared_2n[0] - self.compared_2n[1])


def calibrate(labels: Labels) -> Calibration:
    """Return the calibration under which labels are likeliest.

    By Newton's method, with a small penalty on leaving slope 1 and bias 0; the slope is kept
    positive. Pairs alone do not say what is good: then their answers have the value 0 on average.
    """
    scores_n, good_n, differences_n = labels.scores_n, labels.good_n, labels.differences_n
    told_n, compared_n = labels.rated_by.weight_n, labels.paired_by.weight_n
    slope, bias = 1.0, 0.0
    for _ in range(_STEPS):
        p_n, q_n = sigmoid(slope * scores_n + bias), sigmoid(slope * differences_n)
        gradient_2 = np.array(
            [
                (told_n * (p_n - good_n) * scores_n).sum()
                + (compared_n * (q_n - 1.0) * differences_n).sum(),
                (told_n * (p_n - good_n)).sum(),
            ]
        ) + _PENALTY * np.array([slope - 1.0, bias])
        weight_n, pair_n = told_n * p_n * (1.0 - p_n), compared_n * q_n * (1.0 - q_n)
        cross = (weight_n * scores_n).sum()
        hessian_22 = np.array(
            [
                [(weight_n * scores_n**2).sum() + (pair_n * differences_n**2).sum(), cross],
                [cross, weight_n.sum()],
            ]
        ) + _PENALTY * np.eye(2)
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        step_2 *= min(1.0, 1.0 / max(float(np.abs(step_2).max()), 1e-9))  # far off it overshoots
        slope, bias = max(slope - float(step_2[0]), 1e-3), bias - float(step_2[1])
        if float(np.abs(step_2).max()) < 1e-9:
            break
    if not len(scores_n) and len(compared_n):
        bias = -slope * labels.paired_by.mean(labels.compared_2n.mean(axis=0))
    return Calibration(slope, bias)


def expected_calibration_error(probability_n: Floats, label_n: Floats, raters: Raters) -> float:
    """Return the mean distance of probability and frequency over ten bins of equal width.

    Naeini et al., AAAI 2015; weighted by how much falls into each bin. Labels are in [0, 1].
    """
    place_n = np.minimum((probability_n * BINS).astype(int), BINS - 1)
    found = 0.0
    for place in range(BINS):
        inside_n = place_n == place
        if inside_n.any():
            gap = abs(raters.of(inside_n).mean(probability_n[inside_n] - label_n[inside_n]))
            found += gap * raters.mean(inside_n.astype(float))
    return found


def brier(probability_n: Floats, label_n: Floats, raters: Raters) -> float:
    """Return the mean squared distance of probability and label (Brier 1950)."""
    return raters.mean((probability_n - label_n) ** 2)


def errors_on_pairs(
    calibration: Calibration, differences_n: Floats, raters: Raters, spreads: Sequence[float]
) -> Errors:
    """Return the errors on pairs, given the score of the better minus that of the worse.

    The confidence in what the model says is the better one is held against how often it is.
    """
    right_n = np.where(differences_n == 0.0, 0.5, differences_n > 0.0)
    sure_n = np.abs(differences_n)
    told_n, raw_n = calibration.preference(sure_n), sigmoid(sure_n)
    return _errors(proportion(right_n, raters), told_n, raw_n, right_n, raters, spreads)


def errors_on_rewards(
    calibration: Calibration,
    scores_n: Floats,
    rewards_n: Floats,
    raters: Raters,
    spreads: Sequence[float],
) -> Errors:
    """Return the errors on rewarded answers; a reward of 0 has no sign to tell."""
    told_n = calibration.probability(scores_n)
    signed_n = rewards_n != 0.0
    right_n = (told_n[signed_n] > 0.5) == (rewards_n[signed_n] > 0.0)
    accuracy = proportion(right_n.astype(float), raters.of(signed_n)) if len(right_n) else None
    good_n = (rewards_n + 1.0) / 2.0
    return _errors(accuracy, told_n, sigmoid(scores_n), good_n, raters, spreads)


def _errors(
    accuracy: Proportion | None,
    told_n: Floats,
    raw_n: Floats,
    label_n: Floats,
    raters: Raters,
    spreads: Sequence[float],
) -> Errors:
    return Errors(
        accuracy=accuracy,
        ece=expected_calibration_error(told_n, label_n, raters),
        brier=brier(told_n, label_n, raters),
        raw_ece=expected_calibration_error(raw_n, label_n, raters),
        raw_brier=brier(raw_n, label_n, raters),
        spread=float(np.mean(spreads)),
    )
