"""What a reward model foretells makes doubly robust estimates sharper, and never wrong."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from learner import off_policy
from learner.off_policy import Floats, Foretold, LoggedAnswers, cross_fitted

Model = Literal["none", "right", "biased", "noise", "asked of half"]
LOGS, COUNT, DRAWS = 100, 400, 4
KIND_P, WORDING_P = np.array([0.6, 0.4]), 0.8
"""How often the candidate takes each of two decisions, and puts its answer well."""
KIND_REWARD, WORDING_REWARD = np.array([0.3, -0.3]), 0.6
VALUE = float(KIND_P @ KIND_REWARD) + (2.0 * WORDING_P - 1.0) * WORDING_REWARD


def _estimates(model: Model, seed: int = 0) -> Floats:
    """Return estimates of the candidate's value from logs of a policy that decides by coin.

    How an answer is put decides most of its reward, and no first decision tells it.
    """
    rng = np.random.default_rng(seed)
    return np.array([off_policy.doubly_robust(_log(rng, model)) for _ in range(LOGS)])


def _log(rng: np.random.Generator, model: Model) -> LoggedAnswers:
    kind_n, well_n = rng.integers(2, size=COUNT), rng.integers(2, size=COUNT)
    rewards_n = KIND_REWARD[kind_n] + WORDING_REWARD * (2.0 * well_n - 1.0)
    rewards_n = rewards_n + rng.normal(scale=0.2, size=COUNT)
    drawn_n = (rng.random((COUNT, DRAWS)) < WORDING_P).mean(axis=1)
    users = [f"user-{n % 50}" for n in range(COUNT)]
    predicted_n, expected_n = cross_fitted(
        lambda decision_n: np.eye(2)[decision_n],
        kind_n,
        np.tile(KIND_P, (COUNT, 1)),
        rewards_n,
        users,
        _foretold(rng, model, well_n.astype(float), drawn_n),
    )
    wording_n = np.where(well_n == 1, WORDING_P, 1.0 - WORDING_P)
    return LoggedAnswers(
        weights_n=KIND_P[kind_n] * wording_n / 0.25,
        rewards_n=rewards_n,
        costs_n=np.zeros(COUNT),
        users=tuple(users),
        predicted_n=predicted_n,
        expected_n=expected_n,
    )


def _foretold(
    rng: np.random.Generator, model: Model, well_n: Floats, drawn_n: Floats
) -> Foretold | None:
    noise_2n = rng.normal(size=(2, COUNT))  # drawn for every model: all see the same logs
    if model == "none":
        return None
    if model == "noise":
        return Foretold(noise_2n[0], noise_2n[1])
    if model == "biased":
        return Foretold(5.0 - 3.0 * well_n, 5.0 - 3.0 * drawn_n)
    asked_n = np.arange(COUNT) >= (COUNT // 2 if model == "asked of half" else 0)
    return Foretold(np.where(asked_n, well_n - 0.5, 0.0), np.where(asked_n, drawn_n - 0.5, 0.0))


@pytest.mark.parametrize("model", ["none", "right", "biased", "noise", "asked of half"])
def test_the_estimate_is_centred_on_the_truth_whatever_is_foretold(model: Model) -> None:
    found = _estimates(model)
    error = found.std(ddof=1) / np.sqrt(LOGS)
    # Self-normalised weights and a penalised regression have a bias of the order of 1/n.
    assert found.mean() == pytest.approx(VALUE, abs=3.5 * error + 2.0 / COUNT)


def test_a_model_that_knows_something_takes_noise_out_and_one_that_knows_nothing_adds_little() -> (
    None
):
    spread = {m: float(_estimates(m).std()) for m in ("none", "right", "noise", "asked of half")}
    assert spread["right"] < 0.85 * spread["none"]
    assert spread["asked of half"] < spread["none"]
    assert spread["noise"] < 1.1 * spread["none"]
