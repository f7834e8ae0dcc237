"""What streams make of a decision: its safety, its reward, and the sample to learn from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from contracts.events.conversation import Message
from contracts.events.decision import Assignment
from contracts.events.event import Event, Id, Moment, Score
from contracts.findings import Finding, Share


class Safety(Event, frozen=True, kw_only=True):
    """Safety features of one decision, sent as soon as it is seen, before any feedback.

    Of a streamed answer ``first_token_seconds`` tells how long users waited, of a plain one
    ``answer_seconds``, the whole of it.
    """

    TYPE: ClassVar[str] = "headrace.safety"

    decision_id: Id
    session_id: Id
    user_id: Id
    assignment: Assignment
    violation: bool
    risk: Share
    findings: tuple[Finding, ...] = ()
    error: str | None = None
    first_token_seconds: float | None = None
    answer_seconds: float | None = None
    decided_at: Moment


class Component(Struct, frozen=True, kw_only=True):
    """One part of a reward: ``value`` in [-1, 1] times ``weight``, and where it came from."""

    name: Id
    value: float
    weight: float
    rule: str
    event_ids: tuple[str, ...]


class Reward(Event, frozen=True, kw_only=True):
    """The reward of a decision when its attribution window closed.

    ``final``: at least one component, ``value`` is their clipped weighted sum. ``censored``: no
    signal came, ``value`` is None. A later ``revision`` of the same decision supersedes this one.
    """

    TYPE: ClassVar[str] = "headrace.reward"

    decision_id: Id
    session_id: Id
    user_id: Id
    assignment: Assignment
    revision: Annotated[int, Meta(ge=0)] = 0
    status: Literal["final", "censored"]
    value: Score | None
    components: tuple[Component, ...] = ()
    decided_at: Moment


class Sample(Event, frozen=True, kw_only=True):
    """A rewarded decision in the form the learner reads.

    ``prompt_token_ids`` and ``token_ids`` are the engine's own; ``logprobs`` has one value per
    token of ``token_ids`` and is empty when they are not usable for importance weights.
    ``feedback_time`` is the event time of the newest signal behind the reward.
    """

    TYPE: ClassVar[str] = "headrace.sample"

    decision_id: Id
    reward_id: Id
    session_id: Id
    user_id: Id
    assignment: Assignment
    revision: Annotated[int, Meta(ge=0)] = 0
    messages: tuple[Message, ...]
    action: Id
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    temperature: float
    reward: Score
    violation: bool
    correction: Message | None = None
    decided_at: Moment
    feedback_time: Moment
