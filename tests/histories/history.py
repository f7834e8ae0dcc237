"""One round's history: what is sent, in which order, with duplicates, all drawn from one seed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from contracts.events import Assignment, Decision, Feedback
from contracts.tokens import feedback_token
from tests.streams.offline_join import rules
from tests.streams.random_history import history

SECRET = "a secret of this test alone"
SCALE = 1 / 32
"""A window of 1.875 s; every time is a multiple of 1/32 s, exact in microseconds and in SQL."""

UNCLAIMED_SECONDS = 25.0
RULES = rules(SCALE, unclaimed_seconds=UNCLAIMED_SECONDS)
USERS, VERSIONS = 5, ("base", "v1", "v2")
PAST_SECONDS = 5
"""Decisions are older than their round: one dated in the future counts as made when it is read."""


def present() -> datetime:
    """Return the whole second that the decisions of a round that starts now end in."""
    return datetime.now(UTC).replace(microsecond=0)


def draw(seed: int, decision: Any, feedback: Any) -> list[Decision | Feedback]:
    """Return the events of a round in the order in which they are sent."""
    rng, start = random.Random(seed), present() - timedelta(seconds=PAST_SECONDS)
    events: list[Decision | Feedback] = []

    def by_some_user(question: str, **fields: Any) -> Decision:
        assignment = Assignment(policy="assistant", policy_version=rng.choice(VERSIONS))
        user = f"user-{rng.randrange(USERS)}"
        made: Decision = decision(question, user_id=user, assignment=assignment, **fields)
        return made

    for group in range(rng.randint(4, 9)):
        decided, said = history(
            rng, by_some_user, feedback, start, scale=SCALE, name=f"{seed}-{group}-"
        )
        events += [*decided, *(_signed(rng, one) for one in said)]
    events += rng.choices(events, k=rng.randint(0, 8))
    rng.shuffle(events)
    return events


def _signed(rng: random.Random, said: Feedback) -> Feedback:
    """Return feedback with its token; now and then without one, or of a session not its own."""
    if rng.random() < 0.06:
        return said
    if said.decision_id and rng.random() < 0.04:
        said = replace(said, session_id=f"{said.session_id}-of-another")
    about = (said.decision_id, said.session_id, said.user_id)
    return replace(said, token=feedback_token(SECRET.encode(), *about))
