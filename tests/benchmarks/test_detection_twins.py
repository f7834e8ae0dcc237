"""What the detection benchmark judges all at once is what the product says one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from benchmarks import detection_assignment, detection_plan
from benchmarks.detection_rewards import Sums, difference_over_steps, graded, sums_at_looks
from benchmarks.detection_rules import (
    Counts,
    Floats,
    conditional_share,
    draw,
    first_look,
    fixed_threshold,
    log_mean_exp,
    log_wealth,
    naive_binomial,
)
from serving import confidence_sequence, sample_ratio
from serving.confidence_sequence import RewardSums, add_reward
from serving.eprocess import add_event, e_value, e_value_against


def ramp(runs: int = 4) -> Counts:
    rng = np.random.default_rng(7)
    weight, rate = np.repeat([0.01, 0.05, 0.25], 20), np.full(60, 0.02)
    return draw(rng, runs, 200, weight, 2 * rate, rate)


def by_events(counts: Counts, run: int) -> Iterable[tuple[float, ...]]:
    """The running logs of one run at each look, event by event."""
    logs: tuple[float, ...] = ()
    before = (0, 0)
    for look, weight in enumerate(counts.weight.tolist()):
        seen = (int(counts.canary_bad[run, look]), int(counts.stable_bad[run, look]))
        for canary, events in ((True, seen[0] - before[0]), (False, seen[1] - before[1])):
            for _ in range(events):
                logs = add_event(logs, canary=canary, weight=weight)
        before = seen
        yield logs


def test_the_running_logs_are_the_products_to_the_last_bit() -> None:
    counts = ramp()
    found = log_wealth(counts)
    for run in range(len(found)):
        for look, logs in enumerate(by_events(counts, run)):
            assert tuple(found[run, look].tolist()) == (logs or (0.0,) * 12)
            e = math.exp(log_mean_exp(found[run, look]))
            assert e == pytest.approx(e_value(logs), rel=1e-12)


def test_our_rule_fires_at_the_first_look_at_which_e_reaches_a_hundred() -> None:
    counts = ramp()
    at = first_look(conditional_share(0.01)(counts))
    assert (at >= 0).any()
    for run in range(len(at)):
        crossed = [e_value(logs) >= 100 for logs in by_events(counts, run)]
        assert at[run] == (crossed.index(True) if any(crossed) else -1)


@pytest.mark.parametrize("times", [2.0, 4.0])
def test_ruling_out_is_the_opposite_e_process_and_silence(times: float) -> None:
    counts = ramp()
    found = detection_plan.ruled_out(times, 0.05)(log_wealth(counts))
    for run in range(len(found)):
        for look, logs in enumerate(by_events(counts, run)):
            passed = e_value(logs) <= 1 and e_value_against(logs, times=times) >= 20
            assert found[run, look] == passed


def test_the_sample_ratio_is_the_products() -> None:
    rng = np.random.default_rng(3)
    canary = rng.integers(20, size=(5, 8)).cumsum(axis=1)
    stable = rng.integers(200, size=(5, 8)).cumsum(axis=1)
    found = detection_assignment.log_e_values(canary, stable, 0.05)
    for at in np.ndindex(*canary.shape):
        logs = sample_ratio.add_users(
            (), canary=int(canary[at]), stable=int(stable[at]), weight=0.05
        )
        assert math.exp(found[at]) == pytest.approx(e_value(logs), rel=1e-9)


def test_the_sequence_of_rewards_is_the_products_over_a_ramp() -> None:
    rng = np.random.default_rng(5)
    steps = []
    singly: list[tuple[Floats, Floats]] = []
    for weight in (0.05, 0.5):
        shape = (1, 1000)
        value = np.floor(graded(0.5)(rng, shape) * 2**16) / 2**16
        mine = rng.random(shape) < weight
        steps.append((sums_at_looks(mine, value), sums_at_looks(~mine, value)))
        singly.append((value[mine], value[~mine]))
    mean, reach = difference_over_steps(steps, 0.01)
    expected = confidence_sequence.difference_over_steps(
        [(_sums(canary), _sums(stable)) for canary, stable in singly], 0.01
    )
    assert float(mean[0, -1]) == pytest.approx(expected.mean)
    assert float(mean[0, -1] - reach[0, -1]) == pytest.approx(expected.lower)


def test_an_empty_arm_leaves_the_radius_infinite() -> None:
    nothing = np.zeros((1, 1), dtype=np.int64)
    none, some = Sums.of_votes(nothing, nothing), Sums.of_votes(nothing + 5, nothing)
    assert np.isinf(difference_over_steps([(none, some)], 0.01)[1]).all()


def _sums(values: Floats) -> RewardSums:
    total = RewardSums()
    for value in values.tolist():
        total = add_reward(total, value)
    return total


def _constant(canary: list[int], stable: list[int]) -> Counts:
    requests = np.full((1, len(canary)), 10).cumsum(axis=1)
    return Counts(
        canary=requests,
        stable=requests * 19,
        canary_bad=np.array([canary]).cumsum(axis=1),
        stable_bad=np.array([stable]).cumsum(axis=1),
        weight=np.full(len(canary), 0.05),
    )


def test_a_fixed_threshold_counts_failed_windows() -> None:
    counts = _constant([1, 0, 1, 1, 0, 0, 1, 1], [0] * 8)
    fired = fixed_threshold(0.05, 2, 2)(counts)
    assert first_look(fired).tolist() == [7]
    assert first_look(fixed_threshold(0.05, 1, 2)(counts)).tolist() == [3]


def test_the_binomial_test_fires_below_one_percent() -> None:
    """Three of three from an arm of 5 % have chance 0.0125 %; two of two 0.25 %; one of one 5 %."""
    assert first_look(naive_binomial(_constant([1, 0, 1], [0, 0, 0]))).tolist() == [2]
