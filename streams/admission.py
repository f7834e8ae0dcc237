"""Admission: a raw record becomes a valid event, or a dead letter that says why not."""

from __future__ import annotations

import hmac
from datetime import datetime

from contracts.broker import Received
from contracts.codec import header
from contracts.dead_letters import dead_letter
from contracts.errors import CodecError
from contracts.events import DeadLetter, Event
from contracts.settings import Settings
from contracts.tokens import RELEASE_HEADER, release_mark

__all__ = ["admit", "dead_letter", "is_release"]


def is_release(record: Received, settings: Settings) -> bool:
    """Say whether somebody who has the secret of feedback marked a record as let out."""
    secret, mark = settings.gateway.feedback_secret, header(record.headers, RELEASE_HEADER)
    if mark is None or not secret:
        return False
    wanted = release_mark(secret.encode(), record.value or b"")
    return hmac.compare_digest(wanted.encode(), mark.encode())


def admit(record: Received, full_name: str, now: datetime) -> Event | DeadLetter:
    """Return the event in a record, or its dead letter.

    ``full_name`` is the topic's name on the broker.
    """
    try:
        return record.event()
    except CodecError as error:
        return dead_letter(record, full_name, error.reason, error.detail, now)
