"""The table of topics: the only places where processes meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from contracts.events import (
    AuditRecord,
    DeadLetter,
    Decision,
    Event,
    Feedback,
    Preference,
    Release,
    Reward,
    Rollout,
    RolloutCommand,
    Safety,
    Sample,
)


class Topic(Struct, frozen=True, kw_only=True):
    """One row of the table. ``partitions`` is None for the count in the settings; what is not
    ``kept_for_ever`` is kept for as long as the broker does by default. With ``append_time`` the
    timestamps of records are the broker's, whatever the clock of whoever wrote them says."""

    name: str
    events: tuple[type[Event], ...]
    key: Callable[[Any], str]
    key_name: str
    writers: str
    readers: str
    cleanup: Literal["delete", "compact"] = "delete"
    kept_for_ever: bool = False
    append_time: bool = False
    partitions: int | None = None

    def full_name(self, prefix: str) -> str:
        """Return the topic's name on the broker."""
        return prefix + self.name


def _session(event: Any) -> str:
    return str(event.session_id)


def _policy(event: Any) -> str:
    return str(event.policy)


DECISIONS = Topic(
    name="decisions",
    events=(Decision,),
    key=_session,
    key_name="session id",
    writers="gateway",
    readers="streams, explain, headrace drill",
)
FEEDBACK = Topic(
    name="feedback",
    events=(Feedback,),
    key=_session,
    key_name="session id",
    writers="gateway, any Kafka producer",
    readers="streams",
)
REWARDS = Topic(
    name="rewards",
    events=(Reward, Safety),
    key=_session,
    key_name="session id",
    writers="streams",
    readers="rollout controller, anyone",
)
SAMPLES = Topic(
    name="samples",
    events=(Sample, Preference),
    key=_session,
    key_name="session id",
    writers="streams",
    readers="learner",
    append_time=True,
    partitions=1,  # the learner's micro-batches are a function of one total order
)
RELEASES = Topic(
    name="releases",
    events=(Release,),
    key=_policy,
    key_name="policy",
    writers="learner, headrace drill",
    readers="rollout controller, explain, headrace rollout",
    cleanup="compact",
    partitions=1,
)
ROLLOUTS = Topic(
    name="rollouts",
    events=(Rollout,),
    key=_policy,
    key_name="policy",
    writers="rollout controller",
    readers="gateways, anyone",
    cleanup="compact",
    partitions=1,
)
ROLLOUT_COMMANDS = Topic(
    name="rollout-commands",
    events=(RolloutCommand,),
    key=_policy,
    key_name="policy",
    writers="headrace rollout",
    readers="rollout controller, headrace rollout",
    partitions=1,  # what people asked for has one order
)
DEAD_LETTERS = Topic(
    name="dead-letters",
    events=(DeadLetter,),
    key=lambda event: f"{event.topic}/{event.partition}/{event.offset}",
    key_name="origin",
    writers="streams, learner",
    readers="headrace dead-letters",
)
AUDIT = Topic(
    name="audit",
    events=(AuditRecord,),
    key=lambda event: str(event.producer),
    key_name="producer",
    writers="all",
    readers="explain, headrace rollout, headrace dead-letters",
    kept_for_ever=True,
)

TOPICS: tuple[Topic, ...] = (
    DECISIONS,
    FEEDBACK,
    REWARDS,
    SAMPLES,
    RELEASES,
    ROLLOUTS,
    ROLLOUT_COMMANDS,
    DEAD_LETTERS,
    AUDIT,
)
