"""The plan of a rollout as settings: its steps, its guardrails with their levels, its waits."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from msgspec import Meta
from msgspec.structs import asdict

from contracts.settings.section import Count, NonNegative, Positive, Section, Share

Level = Annotated[float, Meta(gt=0.0, lt=1.0)]


class Step(Section, frozen=True):
    """One step: the candidate's share of users, and what it must have served before the next.

    ``weight`` 0 is a shadow: users see nothing of the candidate, which answers copies of
    ``shadow_share`` of the requests. After ``max_wait_seconds`` without enough evidence the step
    is held once for as long again, then the candidate goes back.
    """

    weight: Annotated[float, Meta(ge=0.0, lt=1.0)]
    shadow_share: Share = 0.0
    min_canary_requests: Count = 300
    min_canary_users: Count = 50
    max_wait_seconds: Positive = 3600.0

    def __post_init__(self) -> None:
        """Check that a shadow, and nothing else, has copies; ValueError says what to give."""
        if (self.weight == 0.0) != (self.shadow_share > 0.0):
            raise ValueError(
                f"a step of weight {self.weight} has shadow_share {self.shadow_share}; "
                "give a shadow_share above 0 where the weight is 0, and none elsewhere"
            )


class Guardrails(Section, frozen=True):
    """The level of each test: how likely it rolls back, ever, a candidate that is no worse.

    safety: a violation. error: no answer from the user's own arm. slow: a streamed answer that
    begins later than ``first_token_limit_seconds``, a plain one that is there later than
    ``answer_limit_seconds``. missing: a judge's window that closed without feedback. reward: the
    confidence sequence of the judges' rewards.
    """

    safety: Level = 0.004
    error: Level = 0.002
    slow: Level = 0.002
    missing: Level = 0.001
    reward: Level = 0.001


STEPS: tuple[Step, ...] = (
    Step(weight=0.0, shadow_share=0.05, min_canary_requests=200, min_canary_users=50),
    Step(weight=0.01, min_canary_requests=300, min_canary_users=100),
    Step(weight=0.05, min_canary_requests=1000, min_canary_users=300),
    Step(weight=0.25, min_canary_requests=1500, min_canary_users=300),
    Step(weight=0.5, min_canary_requests=2000, min_canary_users=300),
)
"""From unseen to half of the users; what passes the last step is promoted to all of them."""


class Rollout(Section, frozen=True):
    """How a version of one policy reaches its users.

    The levels of all ``guardrails`` together stay within ``alpha_total``. ``min_rewards`` are
    judges' rewards in each arm, and ``reward_margin`` how much worse the candidate's mean may be.
    With ``rule_out_times`` above 0 the last step also asks for evidence, at 5 %, that the candidate
    does not violate so many times as often.
    ``tripwire`` users with a severe finding by the candidate roll back at once, when its share of
    users makes that unlikely beside those of the stable version; a share of users off at
    ``sample_ratio_alpha`` pauses. After a rollback no release is taken for ``cooldown_seconds``. A
    controller that stands by takes over from one that is silent for ``takeover_seconds``; gateways
    that hear of none for ``lease_seconds`` serve the stable version alone until they do.
    A rollout undecided after ``max_users``, each of whom is remembered, goes back.
    """

    steps: tuple[Step, ...] = STEPS
    guardrails: Guardrails = Guardrails()
    alpha_total: Level = 0.01
    first_token_limit_seconds: Positive = 2.0
    answer_limit_seconds: Positive = 20.0
    min_rewards: Count = 50
    reward_margin: NonNegative = 0.1
    rule_out_times: NonNegative = 0.0
    tripwire: Count = 3
    sample_ratio_alpha: Level = 0.0001
    cooldown_seconds: NonNegative = 600.0
    takeover_seconds: Positive = 120.0
    lease_seconds: Positive = 600.0
    publish_seconds: Positive = 1.0
    max_users: Count = 500_000

    def __post_init__(self) -> None:
        """Check the plan as a whole; ValueError says what is wrong and what to give."""
        weights = [step.weight for step in self.steps]
        if not weights or weights[-1] == 0.0 or any(a >= b for a, b in pairwise(weights)):
            raise ValueError(
                f"rollout.steps have the weights {weights}; give them in rising order, "
                "at least one of them above 0"
            )
        if 0.0 < self.rule_out_times < 1.5:
            raise ValueError(
                f"rollout.rule_out_times is {self.rule_out_times}; give at least 1.5, or 0 for off"
            )
        if self.lease_seconds < 2.0 * self.takeover_seconds:
            raise ValueError(
                f"rollout.lease_seconds is {self.lease_seconds}, takeover_seconds "
                f"{self.takeover_seconds}; give at least twice that, or takeovers "
                "withdraw canaries"
            )
        spent = sum(asdict(self.guardrails).values())
        if spent > self.alpha_total * (1.0 + 1e-9):
            raise ValueError(
                f"rollout.guardrails spend {spent:.6g} in all, alpha_total is {self.alpha_total}; "
                "lower some level or allow more in all"
            )
