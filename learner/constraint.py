"""Safety as a constraint: violations stay under a limit, whatever the reward pays for them.

PPO-Lagrangian (Ray, Achiam & Amodei, "Benchmarking safe exploration", 2019; for language models
Safe RLHF, arXiv 2310.12773): the policy descends reward − λ·cost, and λ, the dual variable, rises
while the cost is above what is aimed at, and falls below that; with a proportional term it is that
of PID Lagrangian (Stooke, Achiam & Abbeel, arXiv 2007.03964). Cost is 1 for a violation, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from torch import Tensor

from contracts.settings import Constraint

DAMPING = 0.2
"""Share of λ that the reward's own advantage is divided by; 1 would be Safe RLHF's average of both.

With 1, a large λ silences the reward; with 0, it makes the steps as large as itself.
"""


class Dual(Struct, frozen=True):
    """λ, and the sum over all batches that it comes from."""

    multiplier: float
    integral: float


def first_dual(config: Constraint) -> Dual:
    """Return λ before anything was learned, 0 when there is no constraint."""
    multiplier = 0.0 if config.mode == "off" else config.multiplier
    return Dual(multiplier, multiplier)


def next_dual(
    dual: Dual, costs: Sequence[float], weights: Sequence[float], config: Constraint
) -> Dual:
    """Return λ after one more batch, within bounds: a sum of ``rate`` times (mean cost − aim), and
    ``proportional`` times that of the newest batch.

    The aim lies below the limit: λ ends as a sum of what was above it, so whenever that has to
    rise, as after a shift, the mean of the costs until then was above. The second term answers a
    shift at once, and keeps the policy, which is itself a sum of what λ did, from swinging.

    ``costs`` are of fresh decisions alone: repeated over a replay buffer, old violations would
    drive λ up long after the policy has stopped. ``weights`` add up to 1; 0 when there is no
    constraint.
    """
    if config.mode == "off":
        return Dual(0.0, 0.0)
    if not costs:
        return dual
    mean = sum(cost * weight for cost, weight in zip(costs, weights, strict=True))
    above = mean - config.aim
    integral = _within(dual.integral + config.rate * above, config.largest)
    return Dual(_within(integral + config.proportional * above, config.largest), integral)


def _within(value: float, largest: float) -> float:
    return min(max(value, 0.0), largest)


def constrained(reward_b: Tensor, cost_b: Tensor, multiplier: float) -> Tensor:
    """Return the advantage that counts: (A_reward − λ·A_cost) / (1 + DAMPING·λ)."""
    return (reward_b - multiplier * cost_b) / share_of_reward(multiplier)


def share_of_reward(multiplier: float) -> float:
    """Return what the reward's advantage is divided by."""
    return 1.0 + DAMPING * multiplier
