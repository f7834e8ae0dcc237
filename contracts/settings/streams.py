"""What the stream processors make of decisions and feedback, and where features are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from contracts.settings.section import Count, Positive, Section

RewardSignal = Literal["rating", "correction", "outcome", "report", "safety"]


class RewardComponent(Section, frozen=True):
    """Weight of one signal in the reward; ``clip`` bounds the signal's own value."""

    weight: float
    clip: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0


class DisallowedTopic(Section, frozen=True):
    """A topic the assistant must not act on: a name and regular expressions that mark it."""

    name: str
    patterns: tuple[str, ...]


def _default_reward() -> dict[RewardSignal, RewardComponent]:
    return {
        "rating": RewardComponent(weight=1.0),
        "correction": RewardComponent(weight=0.5),
        "outcome": RewardComponent(weight=0.6),
        "report": RewardComponent(weight=1.0),
        "safety": RewardComponent(weight=1.0),
    }


class Streams(Section, frozen=True):
    """The stream processors. ``safe_actions`` never count as acting on a disallowed topic."""

    window_seconds: Positive = 600.0
    reward: dict[RewardSignal, RewardComponent] = field(default_factory=_default_reward)
    disallowed_topics: tuple[DisallowedTopic, ...] = ()
    safe_actions: tuple[str, ...] = ("refuse", "escalate", "clarify")
    flush_seconds: Positive = 0.5
    flush_rows: Count = 500
    max_open_decisions: Count = 200_000


class Features(Section, frozen=True):
    """The Feast store. Paths are below ``state_dir`` unless absolute."""

    online: Literal["sqlite", "redis"] = "sqlite"
    redis: str = "127.0.0.1:6379"
    registry: str = ""
