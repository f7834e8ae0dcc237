"""What a person's command means in the present state: which version is to serve, or why not.

Plain functions; the loop does what they say. A command never needs the learner, the registry or the
feature store: what can be gone back to is in the state.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from contracts.events import (
    BASE_VERSION,
    Candidate,
    CommandOutcome,
    Rollout,
    RolloutAction,
    RolloutCommand,
)
from contracts.settings.rollout import Rollout as Rules
from serving.rollout_transition import resumed, rolled_back, serving

AUDITED: dict[RolloutAction, str] = {
    "promote": "promoted",
    "rollback": "rolled-back",
    "pin": "pinned",
    "unpin": "unpinned",
    "pause": "paused",
    "resume": "resumed",
}
"""The audit's word for each command that was done."""


class Order(Struct, frozen=True):
    """What a command comes to: ``target`` is to serve everybody, None when the version stays."""

    target: Candidate | None = None
    refusal: str = ""


def order_of(command: RolloutCommand, state: Rollout, waiting: Candidate | None) -> Order:
    """Return what is to be done; ``waiting`` is the release that waits for its turn.

    A refusal says what was asked and what is possible.
    """
    match command.action:
        case "promote":
            return _promotion(command.version, state, waiting)
        case "rollback":
            return _way_back(command.version, state)
        case "pin":
            return _pin(command.version, state, waiting)
        case "unpin":
            return Order() if state.pinned else Order(refusal="nothing is pinned")
        case "pause":
            return Order(refusal=f"already paused: {state.paused}") if state.paused else Order()
        case "resume":
            return Order() if state.paused else Order(refusal="nothing is paused")


def obeyed(
    command: RolloutCommand, order: Order, state: Rollout, rules: Rules, now: datetime
) -> Rollout:
    """Return the state after a command that was done."""
    reason = f"{command.operator}: {command.reason}"
    match command.action:
        case "promote" if order.target is not None:
            after = serving(state, order.target, forward=True, reason=reason)
            after = replace(after, judged=order.target.version)
        case "rollback" if order.target is not None:
            after = serving(state, order.target, forward=False, reason=reason)
            after = replace(after, cooldown_until=rolled_back(state, rules, now, "").cooldown_until)
        case "rollback":
            after = rolled_back(state, rules, now, reason)
        case "pin":
            forward = order.target is not None and order.target not in state.history
            kept = order.target or state.stable
            ends = state.candidate is not None or order.target is not None
            after = serving(state, kept, forward=forward, reason=reason) if ends else state
            after = replace(after, pinned=True, reason=reason)
        case "unpin":
            after = replace(state, pinned=False, reason=reason)
        case "pause":
            after = replace(state, paused=reason)
        case _:
            after = resumed(state, now, reason)
    return answered(after, command)


def answered(state: Rollout, command: RolloutCommand, refusal: str = "") -> Rollout:
    """Return the state that says what became of the command."""
    outcome = CommandOutcome(
        command_id=command.id, action=command.action, operator=command.operator, refused=refusal
    )
    return replace(state, last_command=outcome)


def _promotion(version: str, state: Rollout, waiting: Candidate | None) -> Order:
    if state.pinned:
        return Order(refusal=f"{state.stable.version[:12]} is pinned; unpin it first")
    found = _find(version, state, waiting) if version else state.candidate
    if found is None:
        what = f"version {version[:64]!r} is not known" if version else "no rollout is under way"
        return Order(refusal=f"{what}; known are {_names(_known(state, waiting))}")
    if found.version == state.stable.version:
        return Order(refusal=f"{found.version[:12]} already serves everybody")
    return Order(found)


def _way_back(version: str, state: Rollout) -> Order:
    if not version and state.candidate is not None:
        return Order()
    past = _past(state)
    if not version:
        return Order(past[0]) if past else Order(refusal="no version served before this one")
    if version == state.stable.version and state.candidate is not None:
        return Order()
    found = next((old for old in past if old.version == version), None)
    if found is None:
        return Order(
            refusal=f"version {version[:64]!r} is none that served before; "
            f"these did: {_names(past)}"
        )
    return Order(found)


def _pin(version: str, state: Rollout, waiting: Candidate | None) -> Order:
    if not version or version == state.stable.version:
        return Order()
    found = _find(version, state, waiting)
    if found is None:
        known = _names(_known(state, waiting))
        return Order(refusal=f"version {version[:64]!r} is not known; known are {known}")
    return Order(found)


def _past(state: Rollout) -> tuple[Candidate, ...]:
    """Return what can be gone back to, newest first; the base model always can."""
    base = Candidate(version=BASE_VERSION)
    known = {old.version for old in state.history} | {state.stable.version}
    return state.history if BASE_VERSION in known else (*state.history, base)


def _known(state: Rollout, waiting: Candidate | None) -> tuple[Candidate, ...]:
    under_way = (state.candidate, waiting, state.stable)
    return (*(c for c in under_way if c is not None), *state.offered, *_past(state))


def _find(version: str, state: Rollout, waiting: Candidate | None) -> Candidate | None:
    return next((c for c in _known(state, waiting) if c.version == version), None)


def _names(versions: tuple[Candidate, ...]) -> str:
    return ", ".join(dict.fromkeys(found.version[:12] for found in versions)) or "none"
