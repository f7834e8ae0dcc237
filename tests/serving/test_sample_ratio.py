"""The sample-ratio test: silent on fair assignment, loud on a wrong share of either side."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sample_ratio import NO_USERS, ODDS_RATIOS, add_users, e_value

Batch = tuple[int, int, float]

batches = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=20),
        st.integers(min_value=0, max_value=20),
        st.floats(min_value=0.001, max_value=0.999),
    ),
    max_size=8,
)


def fold(history: list[Batch]) -> tuple[float, ...]:
    logs = NO_USERS
    for canary, stable, weight in history:
        logs = add_users(logs, canary=canary, stable=stable, weight=weight)
    return logs


def by_products(history: list[Batch]) -> float:
    """The definition in shares: the mean over odds ratios of the products of likelihood ratios."""
    total = 0.0
    for ratio in ODDS_RATIOS:
        product = 1.0
        for canary, stable, weight in history:
            share = ratio * weight / (ratio * weight + 1.0 - weight)
            product *= (share / weight) ** canary * ((1.0 - share) / (1.0 - weight)) ** stable
        total += product
    return total / len(ODDS_RATIOS)


def first_alarm(share: float, weight: float, runs: int, users: int) -> list[float]:
    """Return per run how many users it took until E reached 10,000, infinity if never."""
    rng = np.random.default_rng(20261122)
    found = []
    for _ in range(runs):
        canaries = (rng.random((users // 100, 100)) < share).sum(axis=1)
        logs, alarm = NO_USERS, math.inf
        for look, canary in enumerate(canaries, 1):
            logs = add_users(logs, canary=int(canary), stable=100 - int(canary), weight=weight)
            if e_value(logs) >= 10_000:
                alarm = look * 100
                break
        found.append(alarm)
    return found


def test_the_mixture_is_the_same_on_both_sides() -> None:
    assert [1.0 / ratio for ratio in ODDS_RATIOS] == pytest.approx(ODDS_RATIOS[::-1])
    assert (min(ODDS_RATIOS), max(ODDS_RATIOS)) == pytest.approx((1 / 8, 8))


def test_before_any_user_the_value_is_one() -> None:
    assert e_value(NO_USERS) == e_value(add_users((), canary=0, stable=0, weight=0.05)) == 1.0


@given(batches)
def test_the_value_is_the_mean_of_the_products(history: list[Batch]) -> None:
    assert e_value(fold(history)) == pytest.approx(by_products(history), rel=1e-6)


@given(st.floats(min_value=0.001, max_value=0.999))
def test_one_user_is_a_fair_bet_when_the_share_is_the_weight(weight: float) -> None:
    won = e_value(add_users((), canary=1, stable=0, weight=weight))
    lost = e_value(add_users((), canary=0, stable=1, weight=weight))
    assert weight * won + (1.0 - weight) * lost == pytest.approx(1.0, abs=1e-8)


@given(batches)
def test_users_in_batches_give_the_same_bytes_as_one_by_one(history: list[Batch]) -> None:
    singly = [
        (int(first), int(not first), weight)
        for canary, stable, weight in history
        for first in [True] * canary + [False] * stable
    ]
    assert fold(singly) == fold(history)


def test_any_order_of_the_same_users_gives_the_same_bytes() -> None:
    history = [(3, 90, 0.05), (0, 7, 0.05), (40, 110, 0.25), (1, 0, 0.01)]
    assert len({fold(list(order)) for order in permutations(history)}) == 1


def test_a_fair_assignment_raises_no_alarm() -> None:
    assert all(map(math.isinf, first_alarm(0.05, weight=0.05, runs=100, users=20_000)))


@pytest.mark.parametrize("share", [0.0, 0.025, 0.1])
def test_a_share_off_by_a_factor_of_two_or_more_is_found(share: float) -> None:
    alarms = first_alarm(share, weight=0.05, runs=50, users=20_000)
    assert max(alarms) < math.inf


@pytest.mark.parametrize(
    ("canary", "stable", "weight", "said"),
    [(1, 1, 1.5, "canary weight 1.5"), (-1, 1, 0.5, "-1 canary"), (1, -2, 0.5, "-2 stable")],
)
def test_impossible_counts_and_weights_are_refused(
    canary: int, stable: int, weight: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        add_users((), canary=canary, stable=stable, weight=weight)
