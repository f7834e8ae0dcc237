"""Safety events and rewards as the streams write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from contracts.events import Assignment, Reward, Safety

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BASE = Assignment(policy="assistant", policy_version="base")


def safety(
    decision_id: str = "d1", user: str = "u1", assignment: Assignment = BASE, **changes: Any
) -> Safety:
    """Return a safety event; keyword arguments replace fields."""
    values = {"id": f"s-{decision_id}", "violation": False, "risk": 0.0, **changes}
    return Safety(**(_common(decision_id, user, assignment) | values))


def reward(
    decision_id: str,
    value: float | None,
    user: str = "u1",
    assignment: Assignment = BASE,
    revision: int = 0,
    **changes: Any,
) -> Reward:
    """Return a final reward, a censored one without a value; keyword arguments replace fields."""
    values = {
        "id": f"r-{decision_id}-{revision}",
        "revision": revision,
        "status": "censored" if value is None else "final",
        "value": value,
        **changes,
    }
    return Reward(**(_common(decision_id, user, assignment) | values))


def _common(decision_id: str, user: str, assignment: Assignment) -> dict[str, Any]:
    return {
        "time": NOON,
        "decision_id": decision_id,
        "session_id": user,
        "user_id": user,
        "assignment": assignment,
        "decided_at": NOON,
    }
