"""Admission: a raw record becomes a valid event, or a dead letter that says why not."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime

from contracts.broker import Received
from contracts.errors import CodecError
from contracts.events import DeadLetter, Event
from contracts.ids import derived_id

KEPT_BYTES = 512 * 1024
"""Bytes of a refused value that its dead letter keeps: in base64 they fit into one record."""

KEPT_HEADERS = 32
KEPT_TEXT = 1024


def admit(record: Received, full_name: str, now: datetime) -> Event | DeadLetter:
    """Return the event in a record, or its dead letter.

    ``full_name`` is the topic's name on the broker. A dead letter's id follows from the record's
    place, so that a record read twice is refused once.
    """
    try:
        return record.event()
    except CodecError as error:
        return dead_letter(record, full_name, error.reason, error.detail, now)


def dead_letter(
    record: Received, full_name: str, reason: str, detail: str, now: datetime
) -> DeadLetter:
    """Return the dead letter of a record; value, key and headers are cut to fit."""
    value = record.value or b""
    return DeadLetter(
        id=derived_id("dead-letter", full_name, str(record.partition), str(record.offset)),
        time=now,
        topic=full_name,
        partition=record.partition,
        offset=record.offset,
        reason=reason,
        detail=detail[:KEPT_TEXT],
        key_base64=None if record.key is None else _base64(record.key[:KEPT_TEXT]),
        value_base64=_base64(value[:KEPT_BYTES]),
        value_bytes=len(value),
        headers={
            name[:KEPT_TEXT]: (text or b"")[:KEPT_TEXT].decode(errors="replace")
            for name, text in record.headers[:KEPT_HEADERS]
        },
    )


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()
