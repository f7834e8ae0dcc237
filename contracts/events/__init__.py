"""The events that cross between processes, as frozen msgspec structs: one file per noun.

Every event has ``id`` (its identity: the same id is the same event) and ``time`` (when it happened,
UTC). Unknown fields are ignored on reading, so that a newer writer may add optional ones.
"""

from __future__ import annotations

from contracts.events.audit_record import AuditRecord
from contracts.events.conversation import FunctionCall, Message, ToolCall, text_of
from contracts.events.dead_letter import DeadLetter
from contracts.events.decision import (
    BASE_VERSION,
    RULE_VERSION,
    Arm,
    Assignment,
    Decision,
    FeatureValue,
    GuardReport,
    Rung,
    Sampling,
    Timings,
)
from contracts.events.event import Event, Id, Moment, Score
from contracts.events.feedback import FEEDBACK_NEEDS, Feedback, FeedbackKind
from contracts.events.release import Candidate, Release
from contracts.events.reward import Component, Preference, Reward, Safety, Sample
from contracts.events.rollout import (
    CommandOutcome,
    Evidence,
    GuardrailEvidence,
    Rollout,
    RolloutAction,
    RolloutCommand,
    StepRewards,
)

__all__ = [
    "BASE_VERSION",
    "EVENTS",
    "FEEDBACK_NEEDS",
    "RULE_VERSION",
    "Arm",
    "Assignment",
    "AuditRecord",
    "Candidate",
    "CommandOutcome",
    "Component",
    "DeadLetter",
    "Decision",
    "Event",
    "Evidence",
    "FeatureValue",
    "Feedback",
    "FeedbackKind",
    "FunctionCall",
    "GuardReport",
    "GuardrailEvidence",
    "Id",
    "Message",
    "Moment",
    "Preference",
    "Release",
    "Reward",
    "Rollout",
    "RolloutAction",
    "RolloutCommand",
    "Rung",
    "Safety",
    "Sample",
    "Sampling",
    "Score",
    "StepRewards",
    "Timings",
    "ToolCall",
    "text_of",
]

EVENTS: tuple[type[Event], ...] = (
    Decision,
    Feedback,
    Safety,
    Reward,
    Sample,
    Preference,
    Release,
    Rollout,
    RolloutCommand,
    DeadLetter,
    AuditRecord,
)
