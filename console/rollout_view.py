"""The rollout under way as an operator sees it: where it stands, what was counted, what is missing.

The controller's state on topic `rollouts` holds all of it, so nothing else need be alive.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from console.table import table
from contracts.broker import events_to_end
from contracts.events import Arm, Evidence, GuardrailEvidence, Rollout
from contracts.settings import Kafka, Settings
from contracts.topics import ROLLOUTS
from serving.rollout_state import newer
from serving.rollout_verdict import missing

CLIENT_ID = "headrace-rollout-show"
ARMS: tuple[Arm, ...] = ("canary", "stable")


class ArmRow(Struct, frozen=True, kw_only=True):
    """What one arm served; ``reward_mean`` is None before any reward."""

    arm: str
    version: str
    requests: int
    users: int
    violations: int
    rewards: int
    reward_mean: float | None


class RolloutView(Struct, frozen=True, kw_only=True):
    """One policy's rollout; ``phase`` is "none" when no controller has written a state yet."""

    policy: str
    phase: str
    stable: str = ""
    candidate: str = ""
    rollout_id: str = ""
    weight: float = 0.0
    since: datetime | None = None
    as_of: datetime | None = None
    reason: str = ""
    arms: tuple[ArmRow, ...] = ()
    missing: tuple[str, ...] = ()


def read_state(kafka: Kafka, policy: str) -> Rollout | None:
    """Return the state that holds for a policy, None when there is none."""
    state: Rollout | None = None
    for _, event in events_to_end(kafka, (ROLLOUTS,), CLIENT_ID):
        if isinstance(event, Rollout) and event.policy == policy:
            state = newer(state, event)
    return state


def view_of(state: Rollout | None, settings: Settings, policy: str) -> RolloutView:
    """Return what a state says; ``settings`` are those of the policy."""
    if state is None:
        return RolloutView(policy=policy, phase="none")
    evidence, under_way = state.evidence, state.candidate is not None
    versions: dict[Arm, str] = {
        "canary": state.candidate.version if state.candidate else "",
        "stable": state.stable.version,
    }
    return RolloutView(
        policy=policy,
        phase=state.phase,
        stable=versions["stable"],
        candidate=versions["canary"],
        rollout_id=state.rollout_id or "",
        weight=state.weight,
        since=state.started_at,
        as_of=state.time,
        reason=state.reason,
        arms=tuple(_arm_row(evidence, arm, versions[arm]) for arm in ARMS) if under_way else (),
        missing=tuple(missing(state, settings.rollout)) if under_way else (),
    )


def _arm_row(evidence: Evidence, arm: Arm, version: str) -> ArmRow:
    count = sum(step.count.get(arm, 0) for step in evidence.rewards)
    total = sum(step.total.get(arm, 0.0) for step in evidence.rewards)
    safety = evidence.guardrails.get("safety", GuardrailEvidence())
    return ArmRow(
        arm=arm,
        version=version,
        requests=evidence.requests.get(arm, 0),
        users=evidence.users.get(arm, 0),
        violations=safety.events.get(arm, 0),
        rewards=count,
        reward_mean=total / count if count else None,
    )


def view_text(view: RolloutView) -> str:
    """Return the view for people."""
    if view.phase == "none":
        return f"policy {view.policy}: no rollout controller has written a state yet"
    lines = [f"policy {view.policy}: {view.phase}, served by {view.stable[:12]}"]
    if view.reason:
        lines.append(f"reason: {view.reason}")
    if not view.candidate:
        return "\n".join(lines)
    since = f" since {view.since:%H:%M:%S}" if view.since else ""
    lines.append(f"candidate {view.candidate[:12]} has {view.weight:.1%} of the users{since}")
    heads = ("arm", "version", "requests", "users", "violations", "rewards", "reward mean")
    rows = [
        (a.arm, a.version[:12], a.requests, a.users, a.violations, a.rewards, a.reward_mean)
        for a in view.arms
    ]
    lines += ["", table(heads, rows), ""]
    lines += [f"not promoted yet: {words}" for words in view.missing]
    return "\n".join(lines)
