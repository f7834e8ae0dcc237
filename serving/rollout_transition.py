"""The state machine of a rollout: from one state to the next, as plain functions.

Each returns the state after a step; its id, time, epoch and positions are the writer's business.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from msgspec.structs import replace

from contracts.events import Candidate, Evidence, GuardrailEvidence, Rollout
from contracts.settings.rollout import Rollout as Rules
from serving.rollout_evidence import EMPTY
from serving.rollout_plan import Identity

HISTORY = 5
"""Versions that served before the stable one and can be gone back to."""

OFFERED = 8
"""Versions released last that a person may still promote."""


def begun(
    state: Rollout, who: Identity, plan: str, positions: dict[str, int], now: datetime
) -> Rollout:
    """Return the state at the beginning of a rollout, before its first step is entered."""
    return replace(
        offered(state, who.candidate),
        candidate=who.candidate,
        rollout_id=who.rollout_id,
        salt=who.salt,
        plan=plan,
        reason="",
        started_at=now,
        evidence=EMPTY,
        first_positions=positions,
        judged=who.candidate.version,
    )


def entered(state: Rollout, number: int, rules: Rules, now: datetime, reason: str = "") -> Rollout:
    """Return the state at the beginning of step ``number``: E and rewards are carried on."""
    step = rules.steps[number]
    return replace(
        state,
        phase="canary" if step.weight else "shadow",
        weight=step.weight,
        shadow_share=step.shadow_share,
        step=number,
        step_started_at=now,
        held=False,
        held_at=None,
        reason=reason,
        evidence=replace(state.evidence, step_requests=0, step_users=0),
    )


def serving(state: Rollout, version: Candidate, *, forward: bool, reason: str) -> Rollout:
    """Return the state in which ``version`` serves everybody and no rollout is under way.

    ``forward`` says that what served before is worth going back to.
    """
    before = state.stable
    changes = before.version != version.version
    past = [old for old in state.history if old.version not in (version.version, before.version)]
    if changes and forward:
        past = [before, *past]
    return replace(
        state,
        phase="promoted" if forward else "rolled-back",
        stable=version,
        candidate=None,
        weight=0.0,
        shadow_share=0.0,
        held=False,
        held_at=None,
        reason=reason,
        history=tuple(past[:HISTORY]),
    )


def rolled_back(state: Rollout, rules: Rules, now: datetime, reason: str) -> Rollout:
    """Return the state after a rollback to the stable version; the next release waits a while."""
    after = serving(state, state.stable, forward=False, reason=reason)
    return replace(
        after, history=state.history, cooldown_until=now + timedelta(seconds=rules.cooldown_seconds)
    )


def refused(state: Rollout, candidate: Candidate, reason: str) -> Rollout:
    """Return the state after a release that no user sees."""
    after = offered(state, candidate)
    return replace(after, phase="refused", candidate=None, reason=reason, judged=candidate.version)


def offered(state: Rollout, candidate: Candidate) -> Rollout:
    """Return the state that knows one more released version."""
    others = [known for known in state.offered if known.version != candidate.version]
    return replace(state, offered=(candidate, *others)[:OFFERED])


def resumed(state: Rollout, now: datetime, reason: str) -> Rollout:
    """Return the state after a pause: the step has its whole time again, users are tested anew."""
    evidence: Evidence = replace(state.evidence, sample_ratio=GuardrailEvidence())
    return replace(
        state,
        paused="",
        reason=reason,
        held=False,
        held_at=None,
        step_started_at=now if state.candidate else state.step_started_at,
        evidence=evidence,
    )
