"""Random sessions: decisions, and what was said about them, on time, late, taken back or not."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

QUESTIONS = ("How do I reset the router?", "how do I reset the router now?", "What does it cost?")


def history(
    rng: random.Random,
    decision: Any,
    feedback: Any,
    start: datetime,
    *,
    scale: float = 1.0,
    name: str = "",
) -> tuple[list[Any], list[Any]]:
    """Return the decisions of a few sessions and the feedback on them, in event time.

    Decisions lie in the 150 s after ``start``, times ``scale``; a window is 60 s times ``scale``.
    ``name`` begins every id.
    """
    decisions: list[Any] = []
    said: list[Any] = []
    for number in range(rng.randint(1, 6)):
        made = decision(
            rng.choice(QUESTIONS),
            id=f"{name}d{number}",
            session_id=f"{name}s{rng.randint(0, 2)}",
            time=start + timedelta(seconds=scale * rng.randint(0, 150)),
        )
        decisions.append(made)
    for number in range(rng.randint(0, 12)):
        made = rng.choice(decisions)
        kind = rng.choice(["rating", "outcome", "report", "retraction", "outcome"])
        on_session = rng.random() < 0.3
        delay = rng.choice([0, 5, 30, 59, 60, 61, 300, 900])
        fields: dict[str, Any] = {
            "id": f"{name}f{number}",
            "decision_id": "" if on_session else made.id,
            "time": made.time + timedelta(seconds=scale * delay),
        }
        if kind in ("rating", "outcome"):
            fields["score"] = rng.choice([-1.0, -0.5, 0.5, 1.0])
        if kind == "outcome":
            fields["name"] = rng.choice(["ticket", "sale"])
        if kind == "retraction" and said and rng.random() < 0.8:
            back = rng.choice(said)
            fields |= {"retracts": back.id, "decision_id": back.decision_id}
            fields |= {"session_id": back.session_id}
        elif kind == "retraction":
            fields["retracts"] = f"{name}f{rng.randint(0, 11)}"
        said.append(feedback(made, kind, **fields))
    return decisions, said
