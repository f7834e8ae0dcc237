"""Probabilities are fitted and measured as the books say."""

from __future__ import annotations

import numpy as np
import pytest

from learner.calibration import (
    Calibration,
    Labels,
    brier,
    calibrate,
    errors_on_pairs,
    errors_on_rewards,
    expected_calibration_error,
    sigmoid,
)
from learner.raters import Floats, Raters, raters_of, strangers

NOTHING = np.zeros(0)
NO_PAIRS = np.zeros((2, 0))


def _rated(scores_n: Floats, good_n: Floats, raters: Raters | None = None) -> Labels:
    told = raters or strangers(len(scores_n))
    return Labels(scores_n, good_n, told, NO_PAIRS, strangers(0))


def _compared(scores_2n: Floats) -> Labels:
    return Labels(NOTHING, NOTHING, strangers(0), scores_2n, strangers(scores_2n.shape[1]))


def test_the_calibration_finds_the_slope_and_bias_that_labels_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    scores_n = rng.normal(0.0, 2.0, 20_000)
    good_n = (rng.random(20_000) < sigmoid(0.5 * scores_n - 0.7)).astype(float)
    found = calibrate(_rated(scores_n, good_n))
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.bias == pytest.approx(-0.7, abs=0.05)


def test_pairs_give_the_slope_and_put_the_middle_of_their_answers_at_no_reward() -> None:
    rng = np.random.default_rng(1)
    scores_2n = rng.normal(3.0, 1.0, (2, 20_000))
    right_n = rng.random(20_000) < sigmoid(0.4 * (scores_2n[0] - scores_2n[1]))
    ordered_2n = np.where(right_n, scores_2n, scores_2n[::-1])
    found = calibrate(_compared(ordered_2n))
    assert found.slope == pytest.approx(0.4, abs=0.03)
    assert found.value(scores_2n.ravel()).mean() == pytest.approx(0.0, abs=0.01)


def test_labels_that_a_score_tells_perfectly_do_not_run_away() -> None:
    scores_n = np.array([-1.0, -0.5, 0.5, 1.0] * 10)
    found = calibrate(_rated(scores_n, (scores_n > 0).astype(float)))
    assert 1.0 < found.slope < 1000.0
    assert np.isfinite(found.value(scores_n)).all()
    inverse = calibrate(_rated(scores_n, (scores_n < 0).astype(float)))
    assert inverse.slope > 0.0  # a score that misleads is flattened, never turned round


def test_nothing_to_calibrate_on_leaves_a_score_as_it_is() -> None:
    assert calibrate(_rated(NOTHING, NOTHING)) == Calibration(1.0, 0.0)


def test_the_errors_of_probabilities_are_those_computed_by_hand() -> None:
    told_n, label_n = np.array([0.95, 0.91, 0.05, 0.45]), np.array([1.0, 0.0, 0.0, 1.0])
    by_hand = 0.5 * abs(0.93 - 0.5) + 0.25 * 0.05 + 0.25 * 0.55
    assert expected_calibration_error(told_n, label_n, strangers(4)) == pytest.approx(by_hand)
    assert expected_calibration_error(np.ones(1), np.ones(1), strangers(1)) == 0.0
    assert brier(told_n, label_n, strangers(4)) == pytest.approx(
        (0.0025 + 0.8281 + 0.0025 + 0.3025) / 4
    )


def test_of_a_pair_the_better_one_counts_and_of_a_reward_its_sign() -> None:
    pairs = errors_on_pairs(
        Calibration(2.0, 0.0), np.array([1.0, -1.0, 3.0, 0.0]), strangers(4), [0.1, 0.3]
    )
    assert pairs.accuracy is not None
    assert pairs.accuracy.value == pytest.approx(2.5 / 4)
    assert pairs.spread == pytest.approx(0.2)
    rewards = errors_on_rewards(
        Calibration(1.0, 1.0),
        np.array([0.0, -2.0, 5.0]),
        np.array([1.0, 0.5, 0.0]),
        strangers(3),
        [0.0],
    )
    assert rewards.accuracy is not None
    assert (rewards.accuracy.value, rewards.accuracy.count) == (0.5, 2)
    assert rewards.raw_brier > rewards.brier > 0.0


def test_where_no_reward_has_a_sign_how_often_it_was_told_is_not_measured() -> None:
    found = errors_on_rewards(
        Calibration(), np.array([0.3, -2.0]), np.zeros(2), strangers(2), [0.1, 0.2]
    )
    assert found.accuracy is None
    assert found.brier > 0.0


def test_one_user_who_praises_much_does_not_move_the_middle() -> None:
    rng = np.random.default_rng(2)
    scores_n = rng.normal(0.0, 1.0, 300)
    good_n = (rng.random(300) < sigmoid(1.5 * scores_n)).astype(float)
    flood_n = np.full(600, -0.2)
    users = [*(f"user-{n}" for n in range(300)), *["one"] * 600]
    both = np.concatenate([scores_n, flood_n]), np.concatenate([good_n, np.ones(600)])
    alone = calibrate(_rated(scores_n, good_n))
    capped = calibrate(_rated(*both, raters_of(users, 20)))
    uncapped = calibrate(_rated(*both))
    assert capped.bias == pytest.approx(alone.bias, abs=0.5)
    assert uncapped.bias > alone.bias + 1.5
