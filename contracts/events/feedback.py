"""What a person or a system said about a decision, or about a session as a whole."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from contracts.events.conversation import Message, text_of
from contracts.events.event import Event, Id, Score

FeedbackKind = Literal[
    "rating", "correction", "outcome", "report", "acceptance", "dwell", "retraction"
]

ON_SESSIONS: frozenset[FeedbackKind] = frozenset({"rating", "outcome", "report", "retraction"})
"""Kinds that may be about a session; the others are about one answer."""


class Feedback(Event, frozen=True, kw_only=True):
    """What a person or system said about one decision, or about a session.

    ``decision_id`` empty: it is about the session, and is credited to its decisions.

    rating: ``score`` in [-1, 1]. correction: ``correction`` is the assistant message wanted, with
    text or tool calls. outcome: ``score`` and ``name`` of what succeeded or failed ("tool",
    "build", "ticket", "re-ask"). report: ``reason`` in words. acceptance: ``score``, 1 when the
    answer was taken as it was, -1 when it was thrown away. dwell: ``seconds`` spent with the
    answer. retraction: ``retracts`` is the id of feedback by the same user, on
    the same decision or session, that no longer holds.
    """

    TYPE: ClassVar[str] = "headrace.feedback"

    decision_id: Annotated[str, Meta(max_length=128)] = ""
    session_id: Id
    user_id: Id
    kind: FeedbackKind
    score: Score | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    correction: Message | None = None
    reason: Annotated[str, Meta(max_length=4000)] | None = None
    seconds: Annotated[float, Meta(ge=0.0, le=1e9)] | None = None
    retracts: Id | None = None
    token: str | None = None
    source: str = "kafka"

    def __post_init__(self) -> None:
        """Check that the kind carries what it needs; ValueError names what is missing or wrong."""
        field, wanted = FEEDBACK_NEEDS[self.kind]
        if getattr(self, field) is None:
            raise ValueError(f"feedback of kind {self.kind!r} needs {wanted}")
        if not self.decision_id and self.kind not in ON_SESSIONS:
            raise ValueError(
                f"feedback of kind {self.kind!r} is about one answer: give decision_id"
            )
        if self.kind == "correction" and self.correction is not None:
            _check_is_answer(self.correction)


FEEDBACK_NEEDS: dict[FeedbackKind, tuple[str, str]] = {
    "rating": ("score", "score in [-1, 1]"),
    "outcome": ("score", "score in [-1, 1]"),
    "correction": ("correction", "correction, an assistant message"),
    "report": ("reason", "reason, in words"),
    "acceptance": ("score", "score in [-1, 1]"),
    "dwell": ("seconds", "seconds, 0 or more"),
    "retraction": ("retracts", "retracts, the id of the feedback that no longer holds"),
}
"""What each kind must carry: the field, and how it is asked for."""


def _check_is_answer(message: Message) -> None:
    if message.role != "assistant":
        raise ValueError(f"correction has role {message.role!r}; give the assistant message wanted")
    if not message.tool_calls and not text_of(message).strip():
        raise ValueError("correction is empty; give text or a tool call")
