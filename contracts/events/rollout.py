"""The state of a rollout with its evidence, and what people ask of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from contracts.events.decision import Arm
from contracts.events.event import Event, Id, Moment
from contracts.events.release import Candidate
from contracts.findings import Share


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
    ``step`` counts the plan's steps from 0; ``held``: its time was up once, at ``held_at``.
    ``paused`` says why nothing advances; ``pinned``: no release is taken. ``history`` are versions
    that served before ``stable``, newest first, and ``offered`` those last released, whatever
    became of them.
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
    held_at: Moment | None = None
    paused: str = ""
    pinned: bool = False
    cooldown_until: Moment | None = None
    last_command: CommandOutcome | None = None
    history: tuple[Candidate, ...] = ()
    offered: tuple[Candidate, ...] = ()
    evidence: Evidence = Evidence()
    positions: dict[str, int] = field(default_factory=dict)
    first_positions: dict[str, int] = field(default_factory=dict)
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
