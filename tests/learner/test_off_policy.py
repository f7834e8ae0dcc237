"""Off-policy estimates agree with enumeration, and their intervals cover what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learner import off_policy
from learner.off_policy import LoggedAnswers, cross_fitted, resample_users

CONTEXTS, ACTIONS = 4, 3
REWARD_CA = np.array([[1.0, -0.5, 0.0], [-1.0, 0.5, 0.2], [0.3, 0.3, -0.8], [0.0, 1.0, -1.0]])
COST_CA = np.array([[0.0, 0.3, 0.1], [0.5, 0.0, 0.0], [0.1, 0.1, 0.9], [0.2, 0.0, 0.4]])


def _policy(seed: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(CONTEXTS, ACTIONS)) * sharpness
    odds = np.exp(logits)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


LOGGER, CANDIDATE = _policy(1, 0.7), _policy(2, 1.2)


def _every_answer() -> LoggedAnswers:
    """The log in which each answer is as frequent as the logger makes it, to a part in 1e5."""
    cells = [(c, a) for c in range(CONTEXTS) for a in range(ACTIONS)]
    copies = [round(LOGGER[c, a] / CONTEXTS * 100_000) for c, a in cells]
    contexts, actions = (np.repeat([cell[i] for cell in cells], copies) for i in (0, 1))
    return _log(contexts, actions, REWARD_CA[contexts, actions], COST_CA[contexts, actions])


def _log(
    contexts: np.ndarray, actions: np.ndarray, rewards: np.ndarray, costs: np.ndarray
) -> LoggedAnswers:
    users = tuple(f"user-{n % 97}" for n in range(len(contexts)))
    kinds = np.eye(CONTEXTS * ACTIONS)
    predicted, expected = cross_fitted(
        lambda decision: kinds[contexts * ACTIONS + decision],
        actions,
        CANDIDATE[contexts],
        rewards,
        users,
    )
    return LoggedAnswers(
        weights_n=off_policy.importance_weights(
            np.log(CANDIDATE[contexts, actions]), np.log(LOGGER[contexts, actions])
        ),
        rewards_n=rewards,
        costs_n=costs,
        users=users,
        predicted_n=predicted,
        expected_n=expected,
    )


def _drawn(rng: np.random.Generator, count: int) -> LoggedAnswers:
    contexts = rng.integers(CONTEXTS, size=count)
    actions = np.array([rng.choice(ACTIONS, p=LOGGER[c]) for c in contexts])
    noise = rng.normal(scale=0.2, size=count)
    costs = (rng.random(count) < COST_CA[contexts, actions]).astype(float)
    return _log(contexts, actions, REWARD_CA[contexts, actions] + noise, costs)


VALUE = float((CANDIDATE * REWARD_CA).sum() / CONTEXTS)
COST = float((CANDIDATE * COST_CA).sum() / CONTEXTS)


def test_every_estimate_of_the_whole_log_is_the_value_that_enumeration_gives() -> None:
    log = _every_answer()
    assert off_policy.ips(log) == pytest.approx(VALUE, abs=2e-4)
    assert off_policy.snips(log) == pytest.approx(VALUE, abs=2e-4)
    assert off_policy.doubly_robust(log) == pytest.approx(VALUE, abs=2e-4)
    assert log.weights_n.max() < off_policy.CAP
    assert off_policy.capped(log) == pytest.approx(VALUE, abs=2e-4)
    assert off_policy.support(log.weights_n, log.users).mean_weight == pytest.approx(1.0, abs=1e-3)


def test_the_effective_sample_size_and_the_error_of_the_mean_weight_are_those_of_the_books() -> (
    None
):
    weights = np.array([4.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    found = off_policy.support(weights, ["a", "a", "b", "b", "c", "c"])
    assert found.effective_samples == pytest.approx(36.0 / 18.0)
    assert found.largest_weight_share == pytest.approx(4.0 / 6.0)
    assert (found.samples, found.users, found.mean_weight) == (6, 3, 1.0)
    assert found.mean_weight_error == pytest.approx(weights.std() / math.sqrt(6))


def test_doubly_robust_stands_when_its_prediction_is_wrong_and_gains_when_it_is_right() -> None:
    rng = np.random.default_rng(5)
    errors: dict[str, list[float]] = {"right": [], "none": [], "wrong": []}
    for _ in range(60):
        log = _drawn(rng, 300)
        nothing = np.zeros(300)
        for name, predicted, expected in (
            ("right", log.predicted_n, log.expected_n),
            ("none", nothing, nothing),
            ("wrong", nothing + 3.0, nothing + 3.0),
        ):
            changed = LoggedAnswers(
                weights_n=log.weights_n,
                rewards_n=log.rewards_n,
                costs_n=log.costs_n,
                users=log.users,
                predicted_n=predicted,
                expected_n=expected,
            )
            errors[name].append(off_policy.doubly_robust(changed) - VALUE)
    assert abs(np.mean(errors["wrong"])) < 0.02
    assert np.std(errors["right"]) < 0.9 * np.std(errors["none"])


def test_the_bounds_cover_the_truth_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(11)
    misses = dict.fromkeys(("low", "high", "cost", "least", "most"), 0)
    runs = 120
    for run in range(runs):
        log = _drawn(rng, 400)
        resampled = resample_users(log.users, run, 200)
        value = off_policy.doubly_robust_interval(log, resampled)
        misses["low"] += value.lower > VALUE
        misses["high"] += value.upper < VALUE
        misses["cost"] += off_policy.cost_interval(log, resampled).upper < COST
        misses["least"] += off_policy.value_lower_bound(log, resampled) > VALUE
        misses["most"] += off_policy.cost_upper_bound(log, resampled) < COST
    allowed = 0.05 * runs + 2.5 * math.sqrt(0.05 * 0.95 * runs)
    assert all(count <= allowed for count in misses.values()), misses
    assert misses["low"] + misses["high"] > 0  # bounds that never miss say nothing


def test_what_the_log_never_shows_is_counted_as_the_worst_case_where_a_mean_would_be_fooled() -> (
    None
):
    """The candidate spends half of its time on an answer that no one was ever given."""
    count = 1000
    log = LoggedAnswers(
        weights_n=np.full(count, 0.5),
        rewards_n=np.full(count, 0.8),
        costs_n=np.zeros(count),
        users=tuple(f"user-{n % 50}" for n in range(count)),
        predicted_n=np.zeros(count),
        expected_n=np.zeros(count),
    )
    resampled = resample_users(log.users, 0)
    truth, violations = 0.5 * 0.8 - 0.5, 0.5
    assert off_policy.snips(log) == pytest.approx(0.8)
    assert off_policy.value_lower_bound(log, resampled) == pytest.approx(truth, abs=1e-6)
    assert off_policy.cost_interval(log, resampled).upper < 0.01
    assert violations <= off_policy.cost_upper_bound(log, resampled) < violations + 0.01


@pytest.mark.parametrize("samples", [3, 59, 300])
def test_no_violation_in_n_answers_gives_the_bound_of_the_rule_of_three(samples: int) -> None:
    bound = off_policy.rate_upper_bound(0.0, samples)
    assert (1.0 - bound) ** samples == pytest.approx(0.05)


def test_a_slice_keeps_its_answers_together() -> None:
    log = _drawn(np.random.default_rng(0), 50)
    inside = np.arange(50) % 2 == 0
    part = off_policy.part(log, inside)
    assert part.users == log.users[::2]
    assert off_policy.ips(part) == pytest.approx(float((log.weights_n * log.rewards_n)[::2].mean()))


def test_a_resample_draws_whole_users() -> None:
    resampled = resample_users(["a", "b", "a", "c"], seed=3, resamples=50)
    assert (resampled.counts_bn[:, 0] == resampled.counts_bn[:, 2]).all()
    same = resample_users(["a", "b", "a", "c"], seed=3, resamples=50)
    assert (resampled.counts_bn == same.counts_bn).all()
