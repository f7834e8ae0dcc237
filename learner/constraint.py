"""Safety as a constraint: violations stay under a limit, whatever the reward pays for them.

PPO-Lagrangian (Ray, Achiam & Amodei, "Benchmarking Safe Exploration in Deep Reinforcement
Learning", 2019; for language models Safe RLHF, arXiv 2310.12773): the policy ascends reward −
λ·cost, and λ, the dual variable, rises
while the cost is above what is aimed at, and falls below that. Cost is 1 for a violation, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from contracts.settings import Constraint

DAMPING = 0.2
"""Share of λ that the reward's own advantage is divided by; 1 would be Safe RLHF's average of both.

With 1, a large λ silences the reward; with 0, it makes the steps as large as itself.
"""


def first_multiplier(config: Constraint) -> float:
    """Return λ before anything was learned, 0 when there is no constraint."""
    return 0.0 if config.mode == "off" else config.multiplier


def next_multiplier(
    multiplier: float,
    costs: Sequence[float],
    weights: Sequence[float],
    config: Constraint,
    *,
    reach: float = 1.0,
) -> float:
    """Return λ after one more batch: moved by ``rate`` times (mean cost − aim), within bounds.

    The aim lies below the limit: λ is the sum of what was above it, so whenever λ has to rise, as
    after a shift, the mean of the costs until then was above.

    ``costs`` are of fresh decisions alone: repeated over a replay buffer, old violations would
    drive λ up long after the policy has stopped. ``weights`` add up to 1, ``reach`` is the share of
    the rate that is used; 0 when there is no constraint.
    """
    if config.mode == "off":
        return 0.0
    if not costs:
        return multiplier
    mean = sum(cost * weight for cost, weight in zip(costs, weights, strict=True))
    moved = multiplier + reach * config.rate * (mean - config.aim)
    return min(max(moved, config.least), config.largest)


def constrained(reward_b: Tensor, cost_b: Tensor, multiplier: float) -> Tensor:
    """Return the advantage that counts: (A_reward − λ·A_cost) / (1 + DAMPING·λ)."""
    return (reward_b - multiplier * cost_b) / share_of_reward(multiplier)


def share_of_reward(multiplier: float) -> float:
    """Return what the reward's advantage is divided by."""
    return 1.0 + DAMPING * multiplier
