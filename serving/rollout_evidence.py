"""Counting for the rollout under way: safety and reward events in, evidence out.

Sums are kept on a grid on which floats add exactly, so a recount of the same log ranges gives the
same bytes. Of a user's events of one kind the first one that arrives is the one that is tested, and
of a user's rewards in a step the first: which one that is depends on the order in the log. It knows
no thresholds; those are in `serving.rollout_verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from contracts.events import (
    Arm,
    Event,
    Evidence,
    GuardrailEvidence,
    Reward,
    Rollout,
    Safety,
    StepRewards,
)
from contracts.judges import is_judge
from contracts.settings import Settings
from serving import sample_ratio
from serving.eprocess import add_event, e_value
from serving.rollout_guardrails import (
    GUARDRAILS,
    Guardrail,
    answered_by_own_arm,
    assigned_arm,
    charged_arm,
    is_severe,
    is_unseen,
    is_without_feedback,
)

EMPTY = Evidence(guardrails={name: GuardrailEvidence() for name in GUARDRAILS})

RECENT = 400_000
"""Decisions and rewards remembered together: what comes twice comes again soon after."""

_REWARD_GRID = 2.0**16  # values and squares on it add exactly up to two million rewards

_Number = TypeVar("_Number", int, float)


class CountingRules(Struct, frozen=True):
    """What of the settings decides how events count."""

    window_seconds: float
    judge_share: float
    first_token_limit_seconds: float
    answer_limit_seconds: float
    max_users: int

    @classmethod
    def of(cls, settings: Settings) -> CountingRules:
        """Return the rules that the settings give."""
        return cls(
            settings.streams.window_seconds,
            settings.policy.judge_share,
            settings.rollout.first_token_limit_seconds,
            settings.rollout.answer_limit_seconds,
            settings.rollout.max_users,
        )


class EvidenceCounter:
    """Counts each decision of the rollout in ``state`` once, and each user's first event of a kind.

    It goes on from the state's evidence. What was already counted into it is learned by `recall`
    of the same events; without that, duplicates of them would count again.
    """

    def __init__(self, state: Rollout, rules: CountingRules) -> None:
        self.evidence = state.evidence
        self._state = state
        self._rules = rules
        self._recent: dict[bytes, None] = {}
        self._seen: set[bytes] = set()
        self._users = 0
        self._now = state.time

    @property
    def full(self) -> bool:
        """Whether as many users as may be were met; nothing more is counted then."""
        return self._users >= self._rules.max_users

    def enter(self, state: Rollout) -> None:
        """Go on with the rollout's next state: another step counts its own requests and users."""
        self._state, self.evidence = state, state.evidence

    def count(self, event: Event, now: datetime) -> bool:
        """Count an event of the rewards topic; return whether the evidence changed.

        ``now`` is the caller's clock: an event of the future moves the watermark no further.
        """
        if self.full:
            return False
        self._now = now
        before = self.evidence
        if isinstance(event, Safety) and self._is_new("decision", event):
            self._users += self._first("met", event.user_id)
            self._count_safety(event)
        elif isinstance(event, Reward) and event.revision == 0 and self._is_new("reward", event):
            self._count_reward(event)
        return self.evidence != before

    def recall(self, event: Event) -> None:
        """Remember an event that is already in the evidence, without counting it."""
        kept = self.evidence
        self.count(event, event.time)
        self.evidence = kept

    def _is_new(self, kind: str, event: Safety | Reward) -> bool:
        """Tell whether an event is of this rollout and did not come a short while ago."""
        key = _key(kind, event.decision_id)
        if event.assignment.rollout_id != self._state.rollout_id or key in self._recent:
            return False
        self._recent[key] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        return True

    def _first(self, *parts: str) -> bool:
        """Remember something of a user for the whole rollout; return whether it was not known."""
        key = _key(*parts)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    # --- safety, errors, waits -----------------------------------------------------------------

    def _count_safety(self, event: Safety) -> None:
        given = event.assignment
        own_arm = answered_by_own_arm(given, self._state, event.user_id)
        self._see_time(event.decided_at, self._rules.window_seconds)
        self._count_assignment(event)
        if own_arm:
            self._count_answer(event)
        charged = charged_arm(event)
        if charged is not None:
            self._guard("error", event, charged)
        if is_severe(event, own_arm=own_arm) and self._first("severe", event.user_id):
            arm = charged if charged and not own_arm else given.arm
            self.evidence = replace(self.evidence, severe=_plus(self.evidence.severe, arm, 1))

    def _count_answer(self, event: Safety) -> None:
        evidence, arm, user = self.evidence, event.assignment.arm, event.user_id
        changed = replace(evidence, requests=_plus(evidence.requests, arm, 1))
        if self._first("user", arm, user):
            changed = replace(changed, users=_plus(evidence.users, arm, 1))
        if arm != "stable" and self._in_step(event):
            first = self._first("step", str(event.assignment.canary_weight), arm, user)
            changed = replace(
                changed,
                step_requests=evidence.step_requests + 1,
                step_users=evidence.step_users + first,
            )
        self.evidence = changed
        if event.violation:
            self._guard("safety", event, arm)
        if arm != "shadow" and self._is_slow(event):
            self._guard("slow", event, arm)

    def _is_slow(self, event: Safety) -> bool:
        """Tell whether a user waited too long; a copy nobody waits for is never streamed."""
        first, whole = event.first_token_seconds or 0.0, event.answer_seconds or 0.0
        rules = self._rules
        return first > rules.first_token_limit_seconds or whole > rules.answer_limit_seconds

    def _in_step(self, event: Safety) -> bool:
        """Whether the candidate's answer was given in the present step: weights tell steps."""
        given, state = event.assignment, self._state
        if state.phase == "shadow":
            return given.arm == "shadow"
        return given.arm == "canary" and given.canary_weight == state.weight

    def _count_assignment(self, event: Safety) -> None:
        """Test the share of users on those who are seen in a canary for the first time."""
        arm = assigned_arm(event)
        if arm is None or not self._first("assigned", event.user_id):
            return
        found, canary = self.evidence.sample_ratio, arm == "canary"
        logs = sample_ratio.add_users(
            found.log_wealth,
            canary=int(canary),
            stable=int(not canary),
            weight=event.assignment.canary_weight,
        )
        ratio = GuardrailEvidence(
            events=_plus(found.events, arm, 1), log_wealth=logs, e_value=e_value(logs)
        )
        self.evidence = replace(self.evidence, sample_ratio=ratio)

    # --- rewards ---------------------------------------------------------------------------------

    def _count_reward(self, event: Reward) -> None:
        """Count a window that closed; later news goes to the learner, or it would favour one arm.

        Only judges count, whose feedback trained nobody, and only while users see the candidate:
        one reward of each in a step, since a user's rewards resemble each other and all go to one
        arm, and the sequence takes rewards for independent.
        """
        self._see_time(event.decided_at, 0.0)
        given, user = event.assignment, event.user_id
        if is_unseen(given) or not is_judge(given.policy, user, self._rules.judge_share):
            return
        if not answered_by_own_arm(given, self._state, user):
            return
        if self._first("window", user) and is_without_feedback(event):
            self._guard("missing", event, given.arm)
        rated = event.status == "final" and event.value is not None
        if rated and self._first("rated", str(given.canary_weight), given.arm, user):
            rewards = _with_reward(self.evidence.rewards, event)
            self.evidence = replace(self.evidence, rewards=rewards)

    # --- all of them -----------------------------------------------------------------------------

    def _guard(self, name: Guardrail, event: Safety | Reward, arm: Arm) -> None:
        found = self.evidence.guardrails.get(name, GuardrailEvidence())
        changed = replace(found, events=_plus(found.events, arm, 1))
        if self._first(name, event.user_id):
            weight = event.assignment.canary_weight
            logs = add_event(found.log_wealth, canary=arm != "stable", weight=weight)
            changed = replace(changed, log_wealth=logs, e_value=e_value(logs))
        guardrails = {**self.evidence.guardrails, name: changed}
        self.evidence = replace(self.evidence, guardrails=guardrails)

    def _see_time(self, decided_at: datetime, window_seconds: float) -> None:
        """Move the watermark: a decision's own window is open, that of a reward has closed.

        Times are those of the gateways' clocks, and one that runs ahead must not mature a step.
        """
        reached = min(decided_at, self._now) - timedelta(seconds=window_seconds)
        if self.evidence.watermark is None or reached > self.evidence.watermark:
            self.evidence = replace(self.evidence, watermark=reached)


def _key(*parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), digest_size=8).digest()


def _with_reward(steps: tuple[StepRewards, ...], event: Reward) -> tuple[StepRewards, ...]:
    arm, weight = event.assignment.arm, event.assignment.canary_weight
    kept = math.floor((event.value or 0.0) * _REWARD_GRID) / _REWARD_GRID
    by_weight = {step.weight: step for step in steps}
    step = by_weight.get(weight, StepRewards(weight=weight))
    by_weight[weight] = replace(
        step,
        count=_plus(step.count, arm, 1),
        total=_plus(step.total, arm, kept),
        squares=_plus(step.squares, arm, kept * kept),
    )
    return tuple(by_weight[weight] for weight in sorted(by_weight))


def _plus(counts: Mapping[Arm, _Number], arm: Arm, amount: _Number) -> dict[Arm, _Number]:
    """Return the counts with more of one arm, in a fixed order of the arms."""
    grown = {**counts, arm: counts.get(arm, 0) + amount}
    return {name: grown[name] for name in sorted(grown)}
