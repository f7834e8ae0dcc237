"""Safety as a constraint: violations stay under a limit, whatever the reward pays for them.

PPO-Lagrangian (Ray, Achiam & Amodei, "Benchmarking safe exploration", 2019; for language models
Safe RLHF, arXiv 2310.12773): the policy descends reward − λ·cost, and λ, the dual variable, rises
while the cost is above its limit and falls below it. Cost is 1 for a violation, else 0.

Beside it a violation may be corrected to a safe answer, as a guard in service would have answered:
an expert's word where the policy went wrong (DAgger, arXiv 1011.0686).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from torch import Tensor

from contracts.events import Message
from contracts.settings import Constraint
from learner.assistant_turn import correction_ids
from learner.experience import Experience

DAMPING = 0.2
"""Share of λ that the reward's own advantage is divided by; 1 would be Safe RLHF's average of both.

With 1, a large λ silences the reward; with 0, it makes the steps as large as itself.
"""


def first_multiplier(config: Constraint) -> float:
    """Return λ before anything was learned, 0 when there is no constraint."""
    return 0.0 if config.mode == "off" else config.multiplier


def next_multiplier(
    multiplier: float, costs: Sequence[float], weights: Sequence[float], config: Constraint
) -> float:
    """Return λ after one more batch: moved by ``rate`` times (mean cost − limit), within bounds.

    ``costs`` are of fresh decisions alone: repeated over a replay buffer, old violations would
    drive λ up long after the policy has stopped. ``weights`` add up to 1; 0 when there is no
    constraint.
    """
    if config.mode == "off":
        return 0.0
    if not costs:
        return multiplier
    mean = sum(cost * weight for cost, weight in zip(costs, weights, strict=True))
    return min(max(multiplier + config.rate * (mean - config.limit), 0.0), config.largest)


def constrained(reward_b: Tensor, cost_b: Tensor, multiplier: float) -> Tensor:
    """Return the advantage that counts: (A_reward − λ·A_cost) / (1 + DAMPING·λ)."""
    return (reward_b - multiplier * cost_b) / share_of_reward(multiplier)


def share_of_reward(multiplier: float) -> float:
    """Return what the reward's advantage is divided by."""
    return 1.0 + DAMPING * multiplier


def safe_answer_ids(tokenizer: Any, config: Constraint) -> tuple[int, ...]:
    """Return the tokens of the safe answer, none where there is no constraint or no such answer."""
    if config.mode == "off" or not config.safe_answer:
        return ()
    return correction_ids(tokenizer, Message(role="assistant", content=config.safe_answer))


def corrected(
    experiences: Sequence[Experience], safe_ids: tuple[int, ...]
) -> tuple[Experience, ...]:
    """Return those with a correction: a person's as it is, and what broke a rule with the safe
    answer, where there is one; without tokens nothing was written that could be corrected."""
    told = (
        replace(e, correction_ids=safe_ids)
        if e.violation and e.token_ids and not e.correction_ids
        else e
        for e in experiences
    )
    return tuple(e for e in told if e.correction_ids)
