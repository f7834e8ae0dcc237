"""The statistics agree with published implementations, savvi and ville, under equal parameters.

`published_values.json` holds what those say; `published_values.py` made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.confidence_sequence import (
    TIGHTEST_AT,
    UNSEEN,
    RewardSums,
    add_reward,
    radius,
    reward_difference,
)
from serving.eprocess import add_events, e_value

PUBLISHED: dict[str, Any] = msgspec.json.decode(
    Path(__file__).with_suffix("").with_name("published_values.json").read_bytes()
)
POINTS = 4000


def mixture(canary: int, stable: int, weight: float, prior: tuple[float, float]) -> float:
    """E through the product's functions, its odds ratios the quantiles of a beta prior."""
    shares = (np.arange(400_000) + 0.5) / 400_000
    density = (prior[0] - 1) * np.log(shares) + (prior[1] - 1) * np.log1p(-shares)
    below = np.exp(density - density.max()).cumsum()
    quantiles = np.interp((np.arange(POINTS) + 0.5) / POINTS, below / below[-1], shares)
    ratios = quantiles / (1.0 - quantiles) * (1.0 - weight) / weight
    logs = add_events(
        (0.0,) * POINTS, tuple(ratios.tolist()), canary=canary, stable=stable, weight=weight
    )
    return e_value(logs)


@pytest.mark.parametrize("row", PUBLISHED["dirichlet_mixtures"], ids=lambda row: row["test"])
def test_the_e_process_is_savvis_where_its_odds_ratios_are_savvis_prior(
    row: dict[str, Any],
) -> None:
    weight, concentration = row["weight"], row["concentration"]
    prior = (concentration * weight, concentration * (1.0 - weight))
    found = mixture(row["canary"], row["stable"], weight, prior)
    assert found == pytest.approx(row["odds"], rel=2e-3)


@pytest.mark.parametrize("row", PUBLISHED["bernoulli_mixtures"], ids=lambda row: row["weight"])
def test_the_e_process_is_villes_where_its_odds_ratios_are_villes_prior(
    row: dict[str, Any],
) -> None:
    first, second = row["prior"]
    found = mixture(row["canary"], row["stable"], row["weight"], (first, second))
    assert found == pytest.approx(row["e_value"], rel=2e-3)


@pytest.mark.parametrize("row", PUBLISHED["boundaries"], ids=str)
def test_the_radius_is_villes_boundary(row: dict[str, Any]) -> None:
    assert radius(row["variance"], row["alpha"]) == pytest.approx(row["radius"], rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
def test_at_its_tightest_the_radius_is_near_the_best_that_ville_finds(alpha: float) -> None:
    (best,) = (
        row["best"]
        for row in PUBLISHED["boundaries"]
        if row["alpha"] == alpha and row["variance"] == TIGHTEST_AT**2
    )
    assert best <= radius(TIGHTEST_AT**2, alpha) * (1 + 1e-9) <= best * 1.002


@pytest.mark.parametrize("row", PUBLISHED["sequences"], ids=str)
def test_the_sequence_is_villes_where_the_unseen_rewards_are_taken_back(
    row: dict[str, Any],
) -> None:
    canary = RewardSums()
    for i in range(row["rewards"]):
        canary = add_reward(canary, (i * 37 % 101) / 128)
    zero = RewardSums(count=10**12)
    plain = msgspec.structs.replace(canary, squares=canary.squares - UNSEEN)
    found = reward_difference(plain, zero, row["alpha"])
    assert (found.lower, found.upper) == pytest.approx((row["lower"], row["upper"]), rel=1e-3)
    ours = reward_difference(canary, zero, row["alpha"])
    assert ours.lower < row["lower"] < row["upper"] < ours.upper
