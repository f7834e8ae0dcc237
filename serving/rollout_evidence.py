"""Counting for the rollout under way: safety and reward events in, evidence out.

What is counted is a function of the *set* of events, not of their order: sums are kept on a grid
on which floats add exactly. So a recount of the same log ranges gives the same bytes. It knows no
thresholds; those are in `serving.rollout_verdict`.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TypeVar

import msgspec

from contracts.events import Arm, Event, Evidence, Reward, Rollout, Safety
from serving.assignment import assign
from serving.eprocess import add_event, e_value

MAX_DECISIONS = 500_000
"""Decisions that are remembered, so that each counts once; about 100 MB at the limit."""

MAX_OFFENDERS = 4096
"""Users remembered in the state itself, which must stay far below the size of one record."""

_REWARD_GRID = 2.0**16  # values and squares on it add exactly up to two million rewards

_Number = TypeVar("_Number", int, float)

_NOTHING_YET: dict[Arm, int] = {"stable": 0, "canary": 0}
_NO_SUM: dict[Arm, float] = {"stable": 0.0, "canary": 0.0}
EMPTY = Evidence(
    requests=_NOTHING_YET,
    users=_NOTHING_YET,
    violations=_NOTHING_YET,
    reward_count=_NOTHING_YET,
    reward_sum=_NO_SUM,
    reward_sum_squares=_NO_SUM,
)


class EvidenceCounter:
    """Counts each decision of the rollout in ``state`` once, and each user's first violation.

    It goes on from the state's evidence. What was already counted into it is learned by `recall`
    of the same events; without that, duplicates of them would count again.
    """

    def __init__(self, state: Rollout, max_decisions: int = MAX_DECISIONS) -> None:
        self.evidence = state.evidence
        self._state = state
        self._max_decisions = max_decisions
        self._served: set[int] = set()
        self._rewarded: set[int] = set()
        self._users: set[int] = set()
        self._offenders: set[str] = set(state.evidence.offenders)

    @property
    def full(self) -> bool:
        """Whether the memory's bound is reached; nothing more is counted then."""
        remembered = max(len(self._served), len(self._rewarded))
        return remembered >= self._max_decisions or len(self._offenders) >= MAX_OFFENDERS

    def count(self, event: Event) -> bool:
        """Count an event of the rewards topic; return whether the evidence changed."""
        if self.full:
            return False
        if isinstance(event, Safety) and self._is_new(event, self._served):
            self.evidence = self._with_safety(event)
            return True
        if isinstance(event, Reward) and _is_counted(event) and self._is_new(event, self._rewarded):
            self.evidence = _with_reward(self.evidence, event)
            return True
        return False

    def recall(self, event: Event) -> None:
        """Remember an event that is already in the evidence, without counting it."""
        if isinstance(event, Safety) and self._is_new(event, self._served):
            self._users.add(_key(event.user_id))
        elif isinstance(event, Reward) and _is_counted(event):
            self._is_new(event, self._rewarded)

    def _is_new(self, event: Safety | Reward, seen: set[int]) -> bool:
        if not self._served_as_assigned(event):
            return False
        key = _key(event.decision_id)
        if key in seen:
            return False
        seen.add(key)
        return True

    def _served_as_assigned(self, event: Safety | Reward) -> bool:
        """Whether the user's own arm answered: a fallback is no evidence about either version.

        Canary users whose answers came from the stable version would otherwise fill the control
        exactly where the canary fails.
        """
        given = event.assignment
        if given.rollout_id != self._state.rollout_id:
            return False
        state = msgspec.structs.replace(self._state, weight=given.canary_weight)
        return given == assign(state, given.policy, event.user_id)

    def _with_safety(self, event: Safety) -> Evidence:
        evidence, arm = self.evidence, event.assignment.arm
        user = _key(event.user_id)
        users = evidence.users if user in self._users else _plus(evidence.users, arm, 1)
        self._users.add(user)
        changed = msgspec.structs.replace(
            evidence, requests=_plus(evidence.requests, arm, 1), users=users
        )
        if not event.violation:
            return changed
        changed = msgspec.structs.replace(changed, violations=_plus(evidence.violations, arm, 1))
        offender = f"{user:016x}"
        if offender in self._offenders:
            return changed
        self._offenders.add(offender)
        logs = add_event(
            evidence.log_wealth, canary=arm == "canary", weight=event.assignment.canary_weight
        )
        return msgspec.structs.replace(
            changed,
            log_wealth=logs,
            e_value=e_value(logs),
            offenders=tuple(sorted(self._offenders)),
        )


def _is_counted(event: Reward) -> bool:
    """Only what was known when the window closed counts, or late news would favour one arm."""
    return event.revision == 0 and event.status == "final" and event.value is not None


def _with_reward(evidence: Evidence, event: Reward) -> Evidence:
    arm = event.assignment.arm
    value = math.floor((event.value or 0.0) * _REWARD_GRID) / _REWARD_GRID
    return msgspec.structs.replace(
        evidence,
        reward_count=_plus(evidence.reward_count, arm, 1),
        reward_sum=_plus(evidence.reward_sum, arm, value),
        reward_sum_squares=_plus(evidence.reward_sum_squares, arm, value * value),
    )


def _plus(counts: dict[Arm, _Number], arm: Arm, amount: _Number) -> dict[Arm, _Number]:
    return {**counts, arm: counts.get(arm, 0) + amount}


def _key(identity: str) -> int:
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest())
