"""The state of a rollout in mid-canary, and its users."""

from __future__ import annotations

from contracts.events import Candidate, Rollout
from serving.assignment import assign
from tests.stream_events import NOON


def canary_state(
    weight: float, salt: str = "salt", *, stable: str = "old", canary: str = "new"
) -> Rollout:
    """Return the state in which a share of ``weight`` of the users is served by ``canary``."""
    return Rollout(
        id="state",
        time=NOON,
        policy="assistant",
        epoch=1,
        phase="canary",
        stable=Candidate(version=stable),
        candidate=Candidate(version=canary, sequence=1),
        rollout_id="rollout-1",
        salt=salt,
        weight=weight,
    )


def user_of(arm: str, state: Rollout) -> str:
    """Return a user whom this state assigns to ``arm``."""
    users = (f"user-{number}" for number in range(1000))
    return next(user for user in users if assign(state, "assistant", user).arm == arm)
