"""Admission: a raw record becomes a valid event, or a dead letter that says why not."""

from __future__ import annotations

import hmac
from datetime import datetime

from contracts.broker import Received
from contracts.dead_letters import dead_letter
from contracts.errors import CodecError
from contracts.events import DeadLetter, Event, Feedback
from contracts.settings import Settings
from contracts.tokens import release_mark

__all__ = ["admit", "dead_letter", "is_release"]


def is_release(mark: str | None, feedback: Feedback, settings: Settings) -> bool:
    """Say whether a header's mark was made by somebody who has the secret of feedback."""
    secret = settings.gateway.feedback_secret
    if mark is None or not secret:
        return False
    wanted = release_mark(secret.encode(), feedback.id)
    return hmac.compare_digest(wanted.encode(), mark.encode())


def admit(record: Received, full_name: str, now: datetime) -> Event | DeadLetter:
    """Return the event in a record, or its dead letter.

    ``full_name`` is the topic's name on the broker.
    """
    try:
        return record.event()
    except CodecError as error:
        return dead_letter(record, full_name, error.reason, error.detail, now)
