"""How the sample-ratio test errs and what it needs, beside a chi-squared test at each look."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.detection_rules import Bools, Floats, Ints, first_look, log_mean_exp
from serving.sample_ratio import add_users

LOOKS = 1000
PER_LOOK = 100
ALPHA = 0.0001

_CHI_SQUARED = 15.137  # 0.9999 quantile at one degree of freedom


def log_e_values(canary: Ints, stable: Ints, weight: float) -> Floats:
    """Return log E for users so far in either arm, as `serving.sample_ratio` has it."""
    hit = np.array(add_users((), canary=1, stable=0, weight=weight))
    miss = np.array(add_users((), canary=0, stable=1, weight=weight))
    return log_mean_exp(canary[..., None] * hit + stable[..., None] * miss)


def alarms(
    rng: np.random.Generator, runs: int, weight: float, share: float
) -> dict[str, tuple[Bools, Ints]]:
    """Return per test which runs raised an alarm, and the users until then.

    ``weight`` is promised and ``share`` is what the canary gets.
    """
    canary = rng.binomial(PER_LOOK, share, size=(runs, LOOKS)).cumsum(axis=1)
    users = PER_LOOK * np.arange(1, LOOKS + 1)
    off = (canary - users * weight) ** 2 / (users * weight * (1.0 - weight))
    crossed = {
        "ours": log_e_values(canary, users - canary, weight) >= -math.log(ALPHA),
        "chi-squared at each look": off > _CHI_SQUARED,
    }
    return {
        name: (at >= 0, (at + 1) * PER_LOOK)
        for name, at in ((name, first_look(found)) for name, found in crossed.items())
    }
