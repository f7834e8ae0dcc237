"""One link of a chain of things that a process did."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from msgspec import Meta, field

from contracts.events.event import Event, Id


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
    detail: dict[str, Any] = field(default_factory=dict)
    trace_id: str | None = None
    span_id: str | None = None
