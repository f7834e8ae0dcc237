"""The state of a rollout in mid-canary."""

from __future__ import annotations

from contracts.events import Candidate, Rollout
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
