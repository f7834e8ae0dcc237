"""A record that could not become an event."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from contracts.events.event import Event


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
    headers: dict[str, str] = field(default_factory=dict)
