"""The e-process: exact values, the same bytes in any order, few false alarms, real power."""

from __future__ import annotations

import math
import sys
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.eprocess import (
    NO_EVENTS,
    ODDS_RATIOS,
    add_event,
    add_events,
    e_value,
    e_value_against,
)

Event = tuple[bool, float]

events = st.lists(
    st.tuples(st.booleans(), st.floats(min_value=0.001, max_value=0.999)), max_size=30
)


def fold(history: list[Event]) -> tuple[float, ...]:
    logs = NO_EVENTS
    for canary, weight in history:
        logs = add_event(logs, canary=canary, weight=weight)
    return logs


def by_products(history: list[Event]) -> float:
    """The definition: the mean over odds ratios of products of share ratios, in plain floats."""
    total = 0.0
    for ratio in ODDS_RATIOS:
        product = 1.0
        for canary, weight in history:
            share = ratio * weight / (ratio * weight + 1.0 - weight)
            product *= share / weight if canary else (1.0 - share) / (1.0 - weight)
        total += product
    return total / len(ODDS_RATIOS)


def test_the_grid_is_twelve_values_from_1_5_to_16() -> None:
    steps = [after / before for before, after in pairwise(ODDS_RATIOS)]
    assert len(ODDS_RATIOS) == 12
    assert ODDS_RATIOS[0] == 1.5
    assert ODDS_RATIOS[-1] == pytest.approx(16.0)
    assert steps == pytest.approx([steps[0]] * 11)


def test_before_any_event_the_value_is_one() -> None:
    assert e_value(()) == e_value(NO_EVENTS) == 1.0


@given(events)
def test_the_value_is_the_mean_of_the_products(history: list[Event]) -> None:
    assert e_value(fold(history)) == pytest.approx(by_products(history), rel=1e-6)


@given(st.floats(min_value=0.001, max_value=0.999))
def test_one_event_is_a_fair_bet_when_the_canary_is_no_worse(weight: float) -> None:
    won = e_value(add_event((), canary=True, weight=weight))
    lost = e_value(add_event((), canary=False, weight=weight))
    mean = weight * won + (1.0 - weight) * lost
    assert mean <= 1.0
    assert mean == pytest.approx(1.0, abs=1e-8)


@given(events, st.randoms(use_true_random=False))
def test_any_order_of_the_same_events_gives_the_same_bytes(
    history: list[Event], shuffler: object
) -> None:
    shuffled = list(history)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis gives a random.Random
    assert fold(history) == fold(shuffled)


def test_every_order_of_a_short_history_gives_the_same_bytes() -> None:
    history = [(True, 0.05), (False, 0.05), (True, 0.25), (False, 0.3), (True, 0.01)]
    assert len({fold(list(order)) for order in permutations(history)}) == 1


def test_thousands_of_canary_violations_end_at_the_largest_float_that_json_can_hold() -> None:
    assert e_value(fold([(True, 0.05)] * 2000)) == sys.float_info.max


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="canary weight"):
        add_event((), canary=True, weight=weight)


def simulate(
    runs: int, requests: int, canary_rate: float, stable_rate: float, weight: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return per run the number of requests at which E first reached 100, infinity if never.

    Between violations lie geometric gaps; each violation is a canary's with the share that the
    rates imply. Vectorised over runs with the same increments as the code under test.
    """
    rng = np.random.default_rng(20261122)
    rate = weight * canary_rate + (1.0 - weight) * stable_rate
    share = weight * canary_rate / rate
    count = int(requests * rate * 1.5 + 50)
    at = rng.geometric(rate, size=(runs, count)).cumsum(axis=1)
    canary = rng.random((runs, count)) < share
    hit = np.array(add_event((), canary=True, weight=weight))
    miss = np.array(add_event((), canary=False, weight=weight))
    logs = np.where(canary[:, :, None], hit, miss).cumsum(axis=1)
    top = logs.max(axis=2)
    wealth = top + np.log(np.exp(logs - top[:, :, None]).mean(axis=2))
    crossed = (wealth >= math.log(100)) & (at <= requests)
    first = crossed.argmax(axis=1)
    reached: np.ndarray[tuple[int], np.dtype[np.float64]] = np.where(
        crossed.any(axis=1), at[np.arange(runs), first], np.inf
    )
    return reached


def test_an_equal_canary_is_rolled_back_in_at_most_one_run_of_a_hundred() -> None:
    stopped = simulate(1000, 100_000, canary_rate=0.005, stable_rate=0.005, weight=0.05)
    rate = np.isfinite(stopped).mean()
    assert rate <= 0.01 + 3 * (0.01 * 0.99 / 1000) ** 0.5


def test_a_canary_four_times_worse_is_always_found_after_some_hundred_canary_requests() -> None:
    stopped = simulate(1000, 100_000, canary_rate=0.02, stable_rate=0.005, weight=0.05)
    assert np.isfinite(stopped).all()
    assert 300 <= np.median(stopped) * 0.05 <= 600


@given(events)
def test_against_a_ratio_of_the_grid_is_the_inverse_of_its_product(history: list[Event]) -> None:
    logs = fold(history)
    for ratio, log in zip(ODDS_RATIOS, logs, strict=True):
        assert e_value_against(logs, times=ratio) == pytest.approx(math.exp(-log))


def test_a_ratio_between_two_of_the_grid_takes_the_lower_which_covers_it() -> None:
    logs = fold([(False, 0.05)] * 60 + [(True, 0.05)] * 2)
    lower = max(ratio for ratio in ODDS_RATIOS if ratio <= 4.0)
    assert e_value_against(logs, times=4.0) == e_value_against(logs, times=lower)
    assert e_value_against(logs, times=4.0) < e_value_against(logs, times=4.5)
    with pytest.raises(ValueError, match=r"give at least 1\.5"):
        e_value_against(logs, times=1.4)


@pytest.mark.parametrize("times", [2.0, 4.0, 16.0])
def test_against_a_canary_as_bad_as_that_or_worse_it_gains_nothing_on_average(
    times: float,
) -> None:
    for weight in (0.01, 0.05, 0.5):
        for worse in (1.0, 1.5, 10.0):
            share = worse * times * weight / (worse * times * weight + 1.0 - weight)
            canary, stable = (
                e_value_against(add_event((), canary=arm, weight=weight), times=times)
                for arm in (True, False)
            )
            assert share * canary + (1.0 - share) * stable <= 1.0 + 1e-8


def test_one_alternative_is_walds_likelihood_ratio() -> None:
    """By hand: odds 3 at weight 0.25 expect share 0.5; factors 2 for a canary event and 2/3."""
    logs = add_events((0.0,), (3.0,), canary=2, stable=1, weight=0.25)
    assert e_value(logs) == pytest.approx(2 * 2 * 2 / 3)
    logs = add_events(logs, (3.0,), canary=1, stable=0, weight=0.5)
    assert e_value(logs) == pytest.approx(2 * 2 * 2 / 3 * 1.5)
