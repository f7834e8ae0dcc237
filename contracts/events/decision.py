"""A served answer: what was asked, what was chosen, by which version, and how likely it was."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from contracts.events.conversation import Message
from contracts.events.event import Event, Id
from contracts.findings import Finding, Share

Arm = Literal["stable", "canary", "shadow"]
"""Who answered: the version in service, the candidate, or the candidate unseen, on a copy."""

Rung = Literal["canary", "stable", "base", "rule", "shadow"]
"""Which rung of the fallback ladder answered a request; "shadow": a copy that no user saw."""

BASE_VERSION = "base"
"""Policy version of the frozen base model, served before any adapter was learned."""
RULE_VERSION = "rule"
"""Policy version of a reply by rule, given when no model answers; nobody learns from it."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How the engine drew the tokens. ``top_k`` 0 means all tokens."""

    temperature: Annotated[float, Meta(ge=0.0)] = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    max_tokens: Annotated[int, Meta(ge=1)] = 64
    seed: int | None = None


class FeatureValue(Struct, frozen=True, kw_only=True):
    """A feature as the gateway read it; ``age_seconds`` is None when the store had no value."""

    value: float | int | str | None
    age_seconds: float | None = None


class Timings(Struct, frozen=True, kw_only=True):
    """Seconds spent inside one request, from its arrival at the gateway."""

    features_seconds: float = 0.0
    first_token_seconds: float | None = None
    total_seconds: float = 0.0


class Assignment(Struct, frozen=True, kw_only=True):
    """Which version served a request and why. ``probability`` is that of the chosen arm."""

    policy: Id
    policy_version: Id
    arm: Arm = "stable"
    probability: Share = 1.0
    canary_weight: Share = 0.0
    rollout_id: str | None = None


class GuardReport(Struct, frozen=True, kw_only=True):
    """What the guard made of an exchange; ``where`` is the side that made it act.

    ``drawn`` is the message the policy drew when another one left in its place; None when the
    policy was not asked, too. ``layer_seconds`` is the time that each layer took.
    """

    action: Literal["passed", "blocked", "escalated"] = "passed"
    where: Literal["question", "answer"] | None = None
    risk: Share = 0.0
    findings: tuple[Finding, ...] = ()
    layer_seconds: dict[str, float] = {}
    drawn: Message | None = None


class Decision(Event, frozen=True, kw_only=True):
    """One served answer: what was asked, what the policy chose, and how likely that was.

    ``rung`` is where on the fallback ladder it was answered, ``key`` the name of the API key used.
    ``answer`` and ``action`` are what left. Where the guard put them in the place of the policy's
    own, `GuardReport.drawn` is the policy's; ``text`` and the tokens always are. ``topic`` is the
    first of the declared ones that the question is about, empty where nobody looked.
    """

    TYPE: ClassVar[str] = "headrace.decision"

    session_id: Id
    user_id: Id
    assignment: Assignment
    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    answer: Message
    action: Id
    text: str
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    sampling: Sampling
    finish_reason: str
    features: dict[str, FeatureValue] = field(default_factory=dict)
    timings: Timings
    engine: str
    streamed: bool = False
    error: str | None = None
    trace_id: str | None = None
    rung: Rung | None = None
    key: str | None = None
    guard: GuardReport | None = None
    topic: Annotated[str, Meta(max_length=64)] = ""
