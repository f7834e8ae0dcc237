"""The reward's sequence: known values, order, ramps, and its error rate where it is hardest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.confidence_sequence import (
    UNKNOWN,
    Interval,
    RewardSums,
    add_reward,
    difference_over_steps,
    radius,
    reward_difference,
)

values = st.lists(st.floats(min_value=-1.0, max_value=1.0), max_size=40)


def sums(rewards: Iterable[float]) -> RewardSums:
    total = RewardSums()
    for value in rewards:
        total = add_reward(total, value)
    return total


@given(values, st.randoms(use_true_random=False))
def test_any_order_of_the_same_rewards_gives_the_same_bytes(
    rewards: list[float], shuffler: object
) -> None:
    shuffled = list(rewards)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis gives a random.Random
    assert sums(rewards) == sums(shuffled)


def test_the_radius_is_robbins_boundary_at_the_time_of_the_information() -> None:
    doubt = 2 * math.log(1 / 0.05)
    prior = (1 / 0.02**2) / (doubt + math.log(1 + doubt))
    time = 1 / 0.1**2
    boundary = math.sqrt((time + prior) * (doubt + math.log((time + prior) / prior)))
    assert radius(0.1**2, 0.05) == pytest.approx(boundary / time)


def test_until_both_arms_have_rewards_nothing_is_known() -> None:
    some = sums([1.0] * 50)
    assert reward_difference(RewardSums(), some, 0.05) == UNKNOWN
    assert reward_difference(some, RewardSums(), 0.05) == UNKNOWN
    assert difference_over_steps((), 0.05) == UNKNOWN == Interval(0.0, -2.0, 2.0)


def test_equal_rewards_do_not_prove_that_there_is_no_other() -> None:
    """A share p of worst rewards (2 lower) stays unseen in 200 with probability (1 - p)^200."""
    found = reward_difference(sums([1.0] * 200), sums([1.0] * 4000), 0.01)
    unseen = 1.0 - (0.01 / 2) ** (1 / 200)
    assert found.mean == 0.0
    assert -0.1 < found.lower < -2.0 * unseen


def test_the_arms_exchanged_give_the_interval_mirrored() -> None:
    canary, stable = sums([0.5, -0.25, 1.0] * 40), sums([0.75, 0.5] * 300)
    there, back = (
        reward_difference(canary, stable, 0.01),
        reward_difference(stable, canary, 0.01),
    )
    assert back == Interval(-there.mean, -there.upper, -there.lower)


def test_a_smaller_alpha_widens_and_more_rewards_narrow_the_interval() -> None:
    def width(count: int, alpha: float) -> float:
        found = reward_difference(sums([0.0, 1.0] * count), sums([0.0, 1.0] * count), alpha)
        return found.upper - found.lower

    assert width(500, 0.001) > width(500, 0.05) > width(2000, 0.05)


def test_a_ramp_in_better_times_is_no_better_canary() -> None:
    """Both arms are equal in each step; pooled, the canary seems better by far."""
    poor, good = sums([0.0, -0.5] * 500), sums([1.0, 0.5] * 500)
    little = sums([0.0, -0.5] * 25)
    steps = [(little, poor), (good, good)]
    pooled = reward_difference(
        sums([0.0, -0.5] * 25 + [1.0, 0.5] * 500),
        sums([0.0, -0.5] * 500 + [1.0, 0.5] * 500),
        0.01,
    )
    apart = difference_over_steps(steps, 0.01)
    assert pooled.lower > 0.2
    assert apart.mean == pytest.approx(0.0)
    assert apart.lower < 0.0 < apart.upper


def test_a_step_with_an_empty_arm_changes_nothing() -> None:
    step = (sums([0.5, 1.0] * 50), sums([0.5, 0.75] * 500))
    empty = (RewardSums(), sums([1.0] * 50))
    assert difference_over_steps([empty, step], 0.01) == reward_difference(*step, 0.01)


def ever_excluded(blame: float, weight: float, alpha: float, runs: int) -> float:
    """Return in what share of runs equal arms with this share of -1 were ever told apart."""
    rng = np.random.default_rng(20261122)
    wrong = 0
    for _ in range(runs):
        arms = rng.binomial(50, weight, size=120)
        counts = np.stack([arms, 50 - arms])
        lost = rng.binomial(counts, blame).cumsum(axis=1)
        counts = counts.cumsum(axis=1)
        for look in range(120):
            canary, stable = (
                RewardSums(int(n), float(n - 2 * bad), float(n))
                for n, bad in zip(counts[:, look], lost[:, look], strict=True)
            )
            found = reward_difference(canary, stable, alpha)
            if found.lower > 0.0 or found.upper < 0.0:
                wrong += 1
                break
    return wrong / runs


@pytest.mark.parametrize("blame", [0.002, 0.01, 0.08, 0.5, 0.99])
@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_equal_arms_are_told_apart_in_at_most_alpha_of_the_rollouts(
    blame: float, weight: float
) -> None:
    """Rare blame at a small share is where the bounds of an average are least to be trusted."""
    runs, alpha = 200, 0.05
    error = (alpha * (1.0 - alpha) / runs) ** 0.5
    assert ever_excluded(blame, weight, alpha, runs) <= alpha + 3 * error


def test_a_canary_whose_rewards_are_worse_by_one_is_told_apart_within_a_hundred() -> None:
    found = reward_difference(sums([-1.0, -0.2] * 50), sums([1.0, -0.2] * 950), 0.001)
    assert found.upper < -0.5


@pytest.mark.parametrize("value", [-1.01, 1.5, math.nan])
def test_a_reward_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        add_reward(RewardSums(), value)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        reward_difference(sums([1.0]), sums([1.0]), alpha)
