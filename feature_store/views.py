"""The table of feature views, in plain Python: names, keys and types, without Feast.

Every feature has one name everywhere: ``<view>.<feature>``, e.g. ``user.reward_mean``.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

Value = float | int | str | None


class View(Struct, frozen=True, kw_only=True):
    """One feature view. ``features`` are for models; ``state`` columns are the writer's own,
    kept beside the values they explain and never served."""

    name: str
    join_key: str
    description: str
    features: dict[str, type]
    state: dict[str, type] = {}

    @property
    def columns(self) -> dict[str, type]:
        """Return all columns with their Python types."""
        return {**self.features, **self.state}


class FeatureRow(Struct, frozen=True, kw_only=True):
    """New values of one entity. ``event_time`` is when the newest fact behind them happened.

    A row may hold some columns only: the others keep their values. None and NaN are unknown.
    """

    view: str
    key: str
    values: dict[str, Value]
    event_time: datetime


USER = View(
    name="user",
    join_key="user_id",
    description="What one user asked for and how it was received.",
    features={
        "decisions": int,
        "violations": int,
        "rewards": int,
        "reward_mean": float,
        "reports": int,
    },
    state={"counted": str},
)
SESSION = View(
    name="session",
    join_key="session_id",
    description="The conversation under way.",
    features={"turns": int, "last_action": str, "last_reward": float},
    state={"counted": str, "log": str},
)
DECISION = View(
    name="decision",
    join_key="decision_id",
    description="What became of one decision.",
    features={
        "risk": float,
        "violation": int,
        "reward": float,
        "status": str,
        "revision": int,
    },
)
POLICY_VERSION = View(
    name="policy_version",
    join_key="policy_version",
    description="How one policy version does with its users.",
    features={"decisions": int, "violations": int, "rewards": int, "reward_mean": float},
    state={"counted": str},
)

VIEWS: dict[str, View] = {view.name: view for view in (USER, SESSION, DECISION, POLICY_VERSION)}

SERVED = (USER, SESSION, POLICY_VERSION)
"""Views whose features the gateway reads for a request and the learner for a past decision."""


class ViewTable(Struct, frozen=True):
    """The views of a store by name, and those of them that are served."""

    views: dict[str, View]
    served: tuple[View, ...]


TABLE = ViewTable(VIEWS, SERVED)


def served_names() -> tuple[str, ...]:
    """Return the names of all served features, ``<view>.<feature>``."""
    return tuple(f"{view.name}.{feature}" for view in SERVED for feature in view.features)
