"""What streams make of a decision: its safety, its reward, and the sample to learn from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from contracts.events.conversation import Message
from contracts.events.decision import Assignment, FeatureValue
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
    """The reward of a decision: when its attribution window closed, and when it changed after that.

    ``final``: at least one component, ``value`` is their clipped weighted sum. ``default``: no
    signal came, ``value`` is the one declared for that. ``censored``: no signal came, ``value`` is
    None. Of the rewards of one decision the last in the log holds; ``revision`` counts them.
    """

    TYPE: ClassVar[str] = "headrace.reward"

    decision_id: Id
    session_id: Id
    user_id: Id
    assignment: Assignment
    revision: Annotated[int, Meta(ge=0)] = 0
    status: Literal["final", "default", "censored"]
    value: Score | None
    components: tuple[Component, ...] = ()
    decided_at: Moment


class Sample(Event, frozen=True, kw_only=True):
    """A rewarded decision in the form the learner reads.

    ``status`` is that of its reward; ``censored``, sent with ``streams.send_censored`` alone:
    there is none, and ``reward`` is 0 and says nothing.
    ``prompt_token_ids`` and ``token_ids`` are the engine's own; ``logprobs`` has one value per
    token of ``token_ids`` and is empty when they are not usable for importance weights.
    ``max_tokens`` is the most tokens that the answer could have, None where it was not logged.
    ``feedback_time`` is the event time of the newest signal behind the reward. Of the samples of
    one decision the last in the log holds; ``withdrawn``: it has no reward any more, since what
    was said was taken back. ``features`` are those that the gateway had for the decision;
    ``signals`` is what each component added to the reward, value times weight.
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
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    reward: Score
    status: Literal["final", "default", "censored"] = "final"
    withdrawn: bool = False
    violation: bool
    correction: Message | None = None
    features: dict[str, FeatureValue] = field(default_factory=dict)
    signals: dict[str, float] = field(default_factory=dict)
    decided_at: Moment
    feedback_time: Moment


class Preference(Event, frozen=True, kw_only=True):
    """A correction as a pair: a person's answer, ``chosen``, over the policy's own, ``rejected``.

    Tokens and ``rejected_logprobs`` are those the rejected answer was drawn with; the log
    probabilities are empty when they are not usable for importance weights. Of the preferences of
    one decision the last in the log holds.
    """

    TYPE: ClassVar[str] = "headrace.preference"

    decision_id: Id
    feedback_id: Id
    session_id: Id
    user_id: Id
    assignment: Assignment
    revision: Annotated[int, Meta(ge=0)] = 0
    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    prompt_token_ids: tuple[int, ...]
    rejected_token_ids: tuple[int, ...]
    rejected_logprobs: tuple[float, ...]
    decided_at: Moment
    feedback_time: Moment
