"""Admission: a raw record becomes a valid event, or a dead letter that says why not."""

from __future__ import annotations

from datetime import datetime

from contracts.broker import Received
from contracts.dead_letters import dead_letter
from contracts.errors import CodecError
from contracts.events import DeadLetter, Event

__all__ = ["admit", "dead_letter"]


def admit(record: Received, full_name: str, now: datetime) -> Event | DeadLetter:
    """Return the event in a record, or its dead letter.

    ``full_name`` is the topic's name on the broker.
    """
    try:
        return record.event()
    except CodecError as error:
        return dead_letter(record, full_name, error.reason, error.detail, now)
