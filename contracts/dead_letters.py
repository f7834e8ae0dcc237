"""The dead letter of a record that could not be processed: its place, why, and what fits of it."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime

from contracts.broker import Received
from contracts.errors import DeadLetterReason
from contracts.events import DeadLetter
from contracts.ids import derived_id

KEPT_BYTES = 512 * 1024
"""Bytes of a value that its dead letter keeps: 683 KiB in base64."""

KEPT_TEXT = 1024
KEPT_HEADERS = 32
KEPT_HEADER_NAME = 128
KEPT_HEADER_BYTES = 512
"""A byte takes up to six in JSON, so 32 headers take 120 KiB at most and a whole letter stays
below `contracts.codec.MAX_VALUE_BYTES` whatever the record holds."""


def dead_letter(
    record: Received, full_name: str, reason: DeadLetterReason, detail: str, now: datetime
) -> DeadLetter:
    """Return the dead letter of a record; detail, key, value and headers are cut to fit.

    ``full_name`` is the topic's name on the broker. The id follows from the record's place, so
    that a record read twice is refused once.
    """
    value = record.value or b""
    return DeadLetter(
        id=derived_id("dead-letter", full_name, str(record.partition), str(record.offset)),
        time=now,
        topic=full_name,
        partition=record.partition,
        offset=record.offset,
        reason=reason,
        detail=_encodable(detail[:KEPT_TEXT]),
        key_base64=None if record.key is None else _base64(record.key[:KEPT_TEXT]),
        value_base64=_base64(value[:KEPT_BYTES]),
        value_bytes=len(value),
        headers={
            _encodable(name[:KEPT_HEADER_NAME]): (raw or b"")[:KEPT_HEADER_BYTES].decode(
                errors="replace"
            )
            for name, raw in record.headers[:KEPT_HEADERS]
        },
    )


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()
