"""What a person or a system said about a decision."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from contracts.events.conversation import Message, text_of
from contracts.events.event import Event, Id, Score

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
