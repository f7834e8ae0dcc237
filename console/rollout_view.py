"""A policy's rollout as an operator sees it: where it stands, what was counted, what is missing.

The controller's state on topic `rollouts` holds all of it, so nothing else need be alive. What a
test's figure means is the controller's own code.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct
from msgspec.structs import asdict

from contracts.broker import events_to_end
from contracts.events import Arm, Candidate, Evidence, GuardrailEvidence, Rollout
from contracts.settings import Kafka
from contracts.settings.rollout import Rollout as Rules
from contracts.topics import ROLLOUTS
from serving.rollout_guardrails import GUARDRAILS
from serving.rollout_state import newer
from serving.rollout_verdict import judged, missing, reward_difference

CLIENT_ID = "headrace-rollout-show"
ARMS: tuple[Arm, ...] = ("shadow", "canary", "stable")
SAMPLE_RATIO = "sample ratio"


class StepRow(Struct, frozen=True, kw_only=True):
    """One step of the plan: ``weight`` of the users, or ``shadow_share`` of the requests, and
    what the candidate must have served in it; what it has is None unless this is the step."""

    number: int
    weight: float
    shadow_share: float
    needs_requests: int
    needs_users: int
    requests: int | None = None
    users: int | None = None
    place: str = ""


class ArmRow(Struct, frozen=True, kw_only=True):
    """What one arm served in this rollout; ``rewards`` are those of judges."""

    arm: str
    version: str
    requests: int
    users: int
    severe: int
    rewards: int


class TestRow(Struct, frozen=True, kw_only=True):
    """One test: it rolls back, or for the sample ratio pauses, at ``threshold``."""

    name: str
    canary: int
    stable: int
    e_value: float
    threshold: float


class RewardRow(Struct, frozen=True, kw_only=True):
    """The canary's mean reward minus the stable one's, with bounds; harm is below ``allowed``."""

    mean: float
    lower: float
    upper: float
    allowed: float


class RolloutView(Struct, frozen=True, kw_only=True):
    """One policy's rollout; ``phase`` is "none" when no controller has written a state yet.

    ``missing`` says why the candidate is not a step further, ``history`` what can be gone back to.
    """

    policy: str
    phase: str
    stable: str = ""
    candidate: str = ""
    rollout_id: str = ""
    plan: str = ""
    weight: float = 0.0
    shadow_share: float = 0.0
    step: int = 0
    since: datetime | None = None
    step_since: datetime | None = None
    as_of: datetime | None = None
    term: int = 0
    writer: str = ""
    reason: str = ""
    held: bool = False
    pinned: bool = False
    paused: str = ""
    cooldown_until: datetime | None = None
    watermark: datetime | None = None
    steps: tuple[StepRow, ...] = ()
    arms: tuple[ArmRow, ...] = ()
    tests: tuple[TestRow, ...] = ()
    reward: RewardRow | None = None
    missing: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


def read_state(kafka: Kafka, policy: str) -> Rollout | None:
    """Return the state that holds for a policy, None when there is none."""
    state: Rollout | None = None
    for _, event in events_to_end(kafka, (ROLLOUTS,), CLIENT_ID):
        if isinstance(event, Rollout) and event.policy == policy:
            state = newer(state, event)
    return state


def view_of(state: Rollout | None, rules: Rules, policy: str) -> RolloutView:
    """Return what a state says; ``rules`` are those of the policy."""
    if state is None:
        return RolloutView(policy=policy, phase="none")
    return RolloutView(
        policy=policy,
        phase=state.phase,
        stable=state.stable.version,
        candidate=state.candidate.version if state.candidate else "",
        rollout_id=state.rollout_id or "",
        plan=state.plan,
        weight=state.weight,
        shadow_share=state.shadow_share,
        step=state.step,
        since=state.started_at,
        step_since=state.step_started_at,
        as_of=state.time,
        term=state.term,
        writer=state.writer,
        reason=state.reason,
        held=state.held,
        pinned=state.pinned,
        paused=state.paused,
        cooldown_until=state.cooldown_until,
        watermark=state.evidence.watermark,
        steps=_steps(state, rules),
        arms=_arms(state) if state.rollout_id else (),
        tests=_tests(state.evidence, rules) if state.rollout_id else (),
        reward=_reward(state.evidence, rules) if state.evidence.rewards else None,
        missing=tuple(missing(state, rules)) if state.candidate else (),
        history=tuple(version.version for version in state.history),
    )


def _steps(state: Rollout, rules: Rules) -> tuple[StepRow, ...]:
    rows = []
    for number, step in enumerate(rules.steps):
        here = state.candidate is not None and number == state.step
        passed = state.candidate is not None and number < state.step
        rows.append(
            StepRow(
                number=number,
                weight=step.weight,
                shadow_share=step.shadow_share,
                needs_requests=step.min_canary_requests,
                needs_users=step.min_canary_users,
                requests=state.evidence.step_requests if here else None,
                users=state.evidence.step_users if here else None,
                place="here" if here else "passed" if passed else "",
            )
        )
    return tuple(rows)


def _arms(state: Rollout) -> tuple[ArmRow, ...]:
    evidence, rewards = state.evidence, judged(state.evidence)
    version = (state.candidate or Candidate(version=state.judged or "-")).version
    return tuple(
        ArmRow(
            arm=arm,
            version=state.stable.version if arm == "stable" else version,
            requests=evidence.requests.get(arm, 0),
            users=evidence.users.get(arm, 0),
            severe=evidence.severe.get(arm, 0),
            rewards=rewards.get(arm, 0),
        )
        for arm in ARMS
    )


def _tests(evidence: Evidence, rules: Rules) -> tuple[TestRow, ...]:
    levels = asdict(rules.guardrails)
    found = [
        _test(name, evidence.guardrails.get(name, GuardrailEvidence()), levels[name])
        for name in GUARDRAILS
    ]
    return (*found, _test(SAMPLE_RATIO, evidence.sample_ratio, rules.sample_ratio_alpha))


def _test(name: str, found: GuardrailEvidence, level: float) -> TestRow:
    return TestRow(
        name=name,
        canary=found.events.get("canary", 0) + found.events.get("shadow", 0),
        stable=found.events.get("stable", 0),
        e_value=found.e_value,
        threshold=1.0 / level,
    )


def _reward(evidence: Evidence, rules: Rules) -> RewardRow:
    found = reward_difference(evidence, rules)
    return RewardRow(
        mean=found.mean, lower=found.lower, upper=found.upper, allowed=-rules.reward_margin
    )
