"""The table of feature views, in plain Python: names, keys and types, without Feast.

Every feature has one name everywhere: ``<view>.<feature>``, e.g. ``user.reward_mean``.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from contracts.settings import Settings

Value = float | int | str | None


AS_OF = "as_of"
"""When the newest fact behind a row of a served view happened, epoch seconds; no feature itself."""


class View(Struct, frozen=True, kw_only=True):
    """One feature view. ``features`` are for models; ``state`` columns are the writer's own,
    kept beside the values they explain and never served. A view that is not ``online`` is for the
    past alone."""

    name: str
    join_key: str
    description: str
    features: dict[str, type]
    state: dict[str, type] = {}
    online: bool = True

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the features that readers give; `AS_OF` is for themselves."""
        return tuple(feature for feature in self.features if feature != AS_OF)

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


RECENT = "recent_"
"""Features whose names begin so are over a sliding window of ``features.window_seconds``."""

_COUNTS: dict[str, type] = {
    "decisions": int,
    "violations": int,
    "rewards": int,
    "reward_mean": float,
}
_WINDOW: dict[str, type] = {
    "recent_decisions": int,
    "recent_reward_mean": float,
    "recent_violation_rate": float,
    "recent_escalation_rate": float,
    "recent_re_ask_rate": float,
    "recent_tokens_mean": float,
    "recent_seconds_mean": float,
    AS_OF: float,
}


def without_stale(values: dict[str, Value], at: float, window_seconds: float) -> dict[str, Value]:
    """Return a row's values at a moment: those of a window that has passed are None.

    Online and offline reads apply the same rule, so that both see the same.
    """
    as_of = values.get(AS_OF)
    if not isinstance(as_of, int | float) or at - as_of <= window_seconds:
        return values
    return {name: None if name.startswith(RECENT) else value for name, value in values.items()}


USER = View(
    name="user",
    join_key="user_id",
    description="What one user asked for and how it was received.",
    features={**_COUNTS, "reports": int, **_WINDOW},
    state={"counted": str},
)
SESSION = View(
    name="session",
    join_key="session_id",
    description="The conversation under way.",
    features={"turns": int, "last_action": str, "last_reward": float, **_WINDOW},
    state={"counted": str, "log": str},
)
DECISION = View(
    name="decision",
    join_key="decision_id",
    description="What became of one decision.",
    features={
        "risk": float,
        "violation": int,
        "findings": str,
        "reward": float,
        "status": str,
        "revision": int,
    },
    online=False,
)
POLICY_VERSION = View(
    name="policy_version",
    join_key="policy_version",
    description="How one policy version does with its users.",
    features={**_COUNTS, **_WINDOW},
    state={"counted": str},
)
TOPIC = View(
    name="topic",
    join_key="topic",
    description="How questions about one declared topic fare.",
    features={**_COUNTS, **_WINDOW},
    state={"counted": str},
)

VIEWS: dict[str, View] = {
    view.name: view for view in (USER, SESSION, DECISION, POLICY_VERSION, TOPIC)
}

SERVED = (USER, SESSION, POLICY_VERSION, TOPIC)
"""Views whose features the gateway reads for a request and the learner for a past decision."""


class ViewTable(Struct, frozen=True):
    """The views of a store by name, and those of them that are served."""

    views: dict[str, View]
    served: tuple[View, ...]

    @property
    def online(self) -> tuple[View, ...]:
        """Return the views whose newest rows are kept online."""
        return tuple(view for view in self.views.values() if view.online)


TABLE = ViewTable(VIEWS, SERVED)


def kept_online_seconds(settings: Settings) -> float:
    """Return how long a key lives online without being written.

    As long as its values may be used, and as long as a session's row must be there for a reward
    to be revised by the signal that is waited for longest.
    """
    streams = settings.streams
    delays = [component.delay_seconds or 0.0 for component in streams.reward.values()]
    revisable = max([streams.window_seconds, *delays]) + streams.revision_seconds
    return max(settings.gateway.feature_max_age_seconds, revisable)


def served_names() -> tuple[str, ...]:
    """Return the names of all served features, ``<view>.<feature>``."""
    return tuple(f"{view.name}.{feature}" for view in SERVED for feature in view.shown)
