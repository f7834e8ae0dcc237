"""The events that cross between processes, as frozen msgspec structs.

Every event has ``id`` (its identity: the same id is the same event) and ``time`` (when it happened,
UTC). Unknown fields are ignored on reading, so that a newer writer may add optional ones.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from contracts.findings import Finding, Share

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Score = Annotated[float, Meta(ge=-1.0, le=1.0)]
Moment = Annotated[datetime, Meta(tz=True)]
Arm = Literal["stable", "canary", "shadow"]
"""Who answered: the version in service, the candidate, or the candidate unseen, on a copy."""

Rung = Literal["canary", "stable", "base", "rule", "shadow"]
"""Which rung of the fallback ladder answered a request; "shadow": a copy that no user saw."""

BASE_VERSION = "base"
"""Policy version of the frozen base model, served before any adapter was learned."""
RULE_VERSION = "rule"
"""Policy version of a reply by rule, given when no model answers; nobody learns from it."""


class Event(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What all events share. ``TYPE`` and ``VERSION`` go into the CloudEvents ``type``."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1

    id: Id
    time: Moment


# --- conversation, in the OpenAI wire form ---------------------------------------------------


class FunctionCall(Struct, frozen=True):
    """Name and JSON-encoded arguments of a tool call."""

    name: Id
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """One call in an assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message, field by field as in the OpenAI API."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


def text_of(message: Message) -> str:
    """Return the text of a message, joining the text parts of structured content."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(str(part.get("text", "")) for part in message.content)


# --- decisions ---------------------------------------------------------------------------------


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
    own, `GuardReport.drawn` is the policy's; ``text`` and the tokens always are.
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
    features: dict[str, FeatureValue] = {}
    timings: Timings
    engine: str
    streamed: bool = False
    error: str | None = None
    trace_id: str | None = None
    rung: Rung | None = None
    key: str | None = None
    guard: GuardReport | None = None


# --- feedback ----------------------------------------------------------------------------------

FeedbackKind = Literal["rating", "correction", "outcome", "report"]


class Feedback(Event, frozen=True, kw_only=True):
    """What a person or system said about one decision.

    rating: ``score`` in [-1, 1]. correction: ``correction`` is the assistant message wanted, with
    text or tool calls. outcome: ``score`` and ``name`` of what succeeded or failed ("tool",
    "ticket", "re-ask").
    report: ``reason`` in words.
    """

    TYPE: ClassVar[str] = "headrace.feedback"

    decision_id: Id
    session_id: Id
    user_id: Id
    kind: FeedbackKind
    score: Score | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    correction: Message | None = None
    reason: Annotated[str, Meta(max_length=4000)] | None = None
    token: str | None = None
    source: str = "kafka"

    def __post_init__(self) -> None:
        """Check that the kind carries what it needs; ValueError names what is missing or wrong."""
        needed = {
            "rating": (self.score, "score in [-1, 1]"),
            "outcome": (self.score, "score in [-1, 1]"),
            "correction": (self.correction, "correction, an assistant message"),
            "report": (self.reason, "reason, in words"),
        }
        value, wanted = needed[self.kind]
        if value is None:
            raise ValueError(f"feedback of kind {self.kind!r} needs {wanted}")
        if self.kind == "correction" and self.correction is not None:
            _check_is_answer(self.correction)


def _check_is_answer(message: Message) -> None:
    if message.role != "assistant":
        raise ValueError(f"correction has role {message.role!r}; give the assistant message wanted")
    if not message.tool_calls and not text_of(message).strip():
        raise ValueError("correction is empty; give text or a tool call")


# --- rewards and samples -----------------------------------------------------------------------


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


# --- releases and rollouts ---------------------------------------------------------------------


class Release(Event, frozen=True, kw_only=True):
    """A new policy version is ready. ``version`` is the sha256 of its manifest, in hex."""

    TYPE: ClassVar[str] = "headrace.release"

    policy: Id
    version: Id
    sequence: Annotated[int, Meta(ge=1)]
    parent: Id
    form: Literal["lora", "full"] = "lora"
    location: str
    newest_feedback_time: Moment
    metrics: dict[str, float] = {}


class Candidate(Struct, frozen=True, kw_only=True):
    """A version the engine serves or is asked to; ``location`` is empty for the base model."""

    version: Id
    sequence: int = 0
    location: str = ""
    form: Literal["lora", "full"] = "lora"


class GuardrailEvidence(Struct, frozen=True, kw_only=True):
    """One guardrail of a rollout: what was found per arm, and its conditional-share e-process.

    ``log_wealth`` has one running log per odds ratio; only a user's first event is in it.
    """

    events: dict[Arm, int] = {}
    log_wealth: tuple[float, ...] = ()
    e_value: float = 1.0


class StepRewards(Struct, frozen=True, kw_only=True):
    """Judges' rewards of one step of a rollout: their number, sum and sum of squares per arm."""

    weight: Share
    count: dict[Arm, int] = {}
    total: dict[Arm, float] = {}
    squares: dict[Arm, float] = {}


class Evidence(Struct, frozen=True, kw_only=True):
    """What the controller has counted in the rollout under way.

    ``step_requests`` and ``step_users`` are those of the candidate in the present step, all else
    is of the whole rollout; ``guardrails`` go by the names in the settings, and ``severe`` are
    users with a severe finding, which trip the wire. ``rewards`` are kept apart by step, since
    rewards that drift while the weight rises must not be pooled. ``watermark`` is the time before
    which every attribution window has closed; ``sample_ratio`` tests the share of users.
    """

    requests: dict[Arm, int] = {}
    users: dict[Arm, int] = {}
    step_requests: int = 0
    step_users: int = 0
    guardrails: dict[str, GuardrailEvidence] = {}
    severe: dict[Arm, int] = {}
    sample_ratio: GuardrailEvidence = GuardrailEvidence()
    rewards: tuple[StepRewards, ...] = ()
    watermark: Moment | None = None


class CommandOutcome(Struct, frozen=True, kw_only=True):
    """The newest command taken; ``refused`` says why it was not done, empty when it was."""

    command_id: Id
    action: str
    operator: Id
    refused: str = ""


class Rollout(Event, frozen=True, kw_only=True):
    """The whole state of the rollout controller for one policy.

    The higher ``term`` holds, within a term the states of the ``writer`` that claimed it first,
    and of these the highest ``epoch``, among equals the later (`serving.rollout_state.newer`).
    ``weight`` is the share of users on ``candidate``; in phase "shadow" it is 0 and
    ``shadow_share`` the share of requests that are copied to it. ``positions`` are the next
    offsets of `releases`, `rewards` and `rollout-commands`, so that each event counts once.
    ``first_positions`` are those at which the rollout began, ``plan`` is the sha256 of its rules,
    and ``judged`` the version of the newest release that was taken, whatever became of it.
    ``step`` counts the plan's steps from 0; ``held``: its time was up once. ``paused`` says why
    nothing advances; ``pinned``: no release is taken. ``history`` are versions that served before
    ``stable``, newest first, and ``offered`` those last released, whatever became of them.
    """

    TYPE: ClassVar[str] = "headrace.rollout"

    policy: Id
    epoch: Annotated[int, Meta(ge=0)]
    phase: Literal["idle", "shadow", "canary", "promoted", "rolled-back", "refused"]
    stable: Candidate
    candidate: Candidate | None = None
    rollout_id: str | None = None
    salt: str = ""
    weight: Share = 0.0
    shadow_share: Share = 0.0
    reason: str = ""
    started_at: Moment | None = None
    step: Annotated[int, Meta(ge=0)] = 0
    step_started_at: Moment | None = None
    held: bool = False
    paused: str = ""
    pinned: bool = False
    cooldown_until: Moment | None = None
    last_command: CommandOutcome | None = None
    history: tuple[Candidate, ...] = ()
    offered: tuple[Candidate, ...] = ()
    evidence: Evidence = Evidence()
    positions: dict[str, int] = {}
    first_positions: dict[str, int] = {}
    plan: str = ""
    judged: str = ""
    term: Annotated[int, Meta(ge=0)] = 0
    writer: str = ""


RolloutAction = Literal["promote", "rollback", "pin", "unpin", "pause", "resume"]


class RolloutCommand(Event, frozen=True, kw_only=True):
    """What a person asks of the rollout controller, and why.

    promote: serve ``version`` (empty: the candidate under way) to everyone at once. rollback: end
    the rollout under way, or go back to ``version``. pin: serve ``version`` (empty: the stable
    one) and take no release until unpin. pause: keep the present shares, advance nothing, until
    resume; harm still rolls back.

    The controller answers each command by one audit record ``rollout.*`` whose detail holds its
    ``command_id`` and ``operator``, "rollout.command-refused" when it cannot be done, and by a
    state whose positions lie behind it.
    """

    TYPE: ClassVar[str] = "headrace.rollout-command"

    policy: Id
    action: RolloutAction
    version: str = ""
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    operator: Id


# --- dead letters and audit --------------------------------------------------------------------


class DeadLetter(Event, frozen=True, kw_only=True):
    """A record that could not become an event, kept whole (``value_base64`` may be cut)."""

    TYPE: ClassVar[str] = "headrace.dead-letter"

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    key_base64: str | None = None
    value_base64: str = ""
    value_bytes: int = 0
    headers: dict[str, str] = {}


class AuditRecord(Event, frozen=True, kw_only=True):
    """One thing a process did. ``sequence`` has no gaps per ``producer``; ``previous`` is the
    hash of the record before it, empty for the first."""

    TYPE: ClassVar[str] = "headrace.audit"

    producer: Id
    sequence: Annotated[int, Meta(ge=0)]
    previous: str
    action: Id
    subject: Id
    reason: str = ""
    detail: dict[str, Any] = {}
    trace_id: str | None = None
    span_id: str | None = None


EVENTS: tuple[type[Event], ...] = (
    Decision,
    Feedback,
    Safety,
    Reward,
    Sample,
    Release,
    Rollout,
    RolloutCommand,
    DeadLetter,
    AuditRecord,
)
