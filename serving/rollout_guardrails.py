"""What each event says for or against a version, and which arm it is charged to.

Plain functions of one event. Harm is looked for in every user's answers; the feedback that is
missing, like the reward, in those of the users who judge alone (`contracts.judges`).
"""

from __future__ import annotations

from typing import Literal

from contracts.events import Arm, Assignment, Reward, Rollout, Safety
from serving.assignment import in_share
from serving.engine_failure import is_crash

Guardrail = Literal["safety", "error", "slow", "missing"]
GUARDRAILS: tuple[Guardrail, ...] = ("safety", "error", "slow", "missing")

SEVERE = ("personal-data", "secret", "canary-string")
"""Categories whose finding in an answer is of severity 1: what left cannot be called back."""

UNCHARGED = " (not charged)"
"""Follows the arm in a decision's error that ran out of time because of what the request asked."""


def answered_by_own_arm(given: Assignment, state: Rollout, user_id: str) -> bool:
    """Tell whether the version that this rollout assigns the user, under the weight of the event's
    own time, gave the answer: a fallback is no evidence about either version.

    Canary users whose answers came from the stable version would otherwise fill the control
    exactly where the canary fails.
    """
    if given.rollout_id != state.rollout_id or state.candidate is None:
        return False
    if given.arm == "shadow":
        return given.policy_version == state.candidate.version
    if is_unseen(given):
        return given.policy_version == state.stable.version and given.arm == "stable"
    canary = in_share(state.salt, user_id, given.canary_weight)
    version = (state.candidate if canary else state.stable).version
    arm = "canary" if canary else "stable"
    share = given.canary_weight if canary else 1.0 - given.canary_weight
    return (given.policy_version, given.arm, given.probability) == (version, arm, share)


def charged_arm(event: Safety) -> Arm | None:
    """Return the arm that gave no answer, None when none failed or none is to blame.

    An error begins with the arm it happened in first; another version may have answered instead.
    Where the request itself left too little time, `UNCHARGED` follows the arm, and none is charged.
    """
    if not event.error:
        return None
    first = event.error.partition(":")[0]
    if event.assignment.arm == "shadow":
        return None if first.endswith(UNCHARGED) else "shadow"
    return "canary" if first == "canary" else "stable" if first == "stable" else None


def assigned_arm(event: Safety) -> Arm | None:
    """Return the arm that the gateway put the user in, None while all users are stable."""
    given = event.assignment
    if is_unseen(given):
        return None
    first = (event.error or "").partition(":")[0]
    return "canary" if first in ("canary", f"canary{UNCHARGED}") else given.arm


def is_severe(event: Safety, *, own_arm: bool) -> bool:
    """Tell whether an event is of severity 1: a secret or personal data came out, or a crash."""
    leaked = own_arm and any(
        finding.where == "answer" and finding.category in SEVERE for finding in event.findings
    )
    crashed = charged_arm(event) is not None and is_crash(event.error or "")
    return (event.violation and leaked) or crashed


def is_without_feedback(event: Reward) -> bool:
    """Tell whether a window closed without a word from the user; our own safety rule is none."""
    names = {part.name for part in event.components}
    return event.status == "censored" or names == {"safety"}


def is_unseen(given: Assignment) -> bool:
    """Tell whether this was assigned while users saw nothing of a candidate: there was none, or
    only copies went to it."""
    return given.arm == "shadow" or given.canary_weight == 0.0 or given.probability == 1.0
