"""The dead letters in the log, and which of them were replayed: by the audit, by whom and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from contracts.broker import Lookup, Received, read_to_end
from contracts.errors import CodecError, SettingsError, UnavailableError
from contracts.events import AuditRecord, DeadLetter
from contracts.settings import Kafka
from contracts.topics import AUDIT, DEAD_LETTERS

CLIENT_ID = "headrace-dead-letters"
REPLAYED = "dead-letter.replayed"
"""Audit action; the subject is the letter's id."""

REPLAY_HEADER = "headrace_replay_of"
"""Header of a record that was sent again: the id of its letter."""

_SPANS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class LetterRow(Struct, frozen=True, kw_only=True):
    """A dead letter without what it holds of the record.

    ``replayed_at`` and ``operator`` tell of the newest replay, ``replays`` counts them;
    ``replay_of`` is the earlier letter when the refused record had itself been sent again.
    ``letter_partition`` and ``letter_offset`` are the letter's own place.
    """

    id: str
    time: datetime
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    value_bytes: int
    replay_of: str = ""
    replays: int = 0
    replayed_at: datetime | None = None
    operator: str = ""
    letter_partition: int
    letter_offset: int


def read_rows(kafka: Kafka) -> list[LetterRow]:
    """Return every dead letter, oldest first; a letter that was written twice comes once.

    Of the audit only records that name a replay are decoded: all processes write into it.
    """
    rows: dict[str, LetterRow] = {}
    replays: list[AuditRecord] = []
    for record in read_to_end(kafka, (DEAD_LETTERS, AUDIT), CLIENT_ID):
        event = _event(record)
        if isinstance(event, DeadLetter):
            rows.setdefault(event.id, _row(record, event))
        elif isinstance(event, AuditRecord) and event.action == REPLAYED:
            replays.append(event)
    for replay in sorted(replays, key=lambda record: record.time):
        if row := rows.get(replay.subject):
            rows[row.id] = replace(
                row,
                replays=row.replays + 1,
                replayed_at=replay.time,
                operator=str(replay.detail.get("operator") or ""),
            )
    return sorted(rows.values(), key=lambda row: (row.time, row.id))


def _event(record: Received) -> DeadLetter | AuditRecord | None:
    if record.topic is AUDIT and f'"{REPLAYED}"'.encode() not in (record.value or b""):
        return None
    try:
        event = record.event()
    except CodecError:
        return None
    return event if isinstance(event, DeadLetter | AuditRecord) else None


def _row(record: Received, letter: DeadLetter) -> LetterRow:
    return LetterRow(
        id=letter.id,
        time=letter.time,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        reason=letter.reason,
        detail=letter.detail,
        value_bytes=letter.value_bytes,
        replay_of=letter.headers.get(REPLAY_HEADER, ""),
        letter_partition=record.partition,
        letter_offset=record.offset,
    )


def whole_letter(lookup: Lookup, row: LetterRow) -> DeadLetter:
    """Return the letter of a row; UnavailableError when it has gone from its topic."""
    found = lookup.record(DEAD_LETTERS, row.letter_partition, row.letter_offset)
    event = found.event() if found is not None else None
    if not isinstance(event, DeadLetter) or event.id != row.id:
        raise UnavailableError(f"letter {row.id} has gone from topic {DEAD_LETTERS.name}")
    return event


def select(
    rows: Iterable[LetterRow],
    *,
    reason: str = "",
    topic: str = "",
    since: datetime | None = None,
    prefix: str = "",
) -> list[LetterRow]:
    """Return the rows that match all that is given.

    ``topic`` is the name on the broker or in the table of topics, ``prefix`` what lies between.
    """
    return [
        row
        for row in rows
        if (not reason or row.reason == reason)
        and (not topic or row.topic in (topic, prefix + topic))
        and (since is None or row.time >= since)
    ]


def named(rows: Sequence[LetterRow], ids: Iterable[str]) -> list[LetterRow]:
    """Return the rows whose ids begin so, each once, in the order given.

    SettingsError when an id begins none, or several.
    """
    found: dict[str, LetterRow] = {}
    for text in ids:
        matches = [row for row in rows if row.id.startswith(text.lower())] if text else []
        if not matches:
            raise SettingsError(f"no dead letter has id {text!r}; see 'headrace dead-letters list'")
        if len(matches) > 1:
            several = ", ".join(row.id[: len(text) + 8] for row in matches[:5])
            raise SettingsError(
                f"{text!r} begins {len(matches)} ids: {several}; give more of the one meant"
            )
        found[matches[0].id] = matches[0]
    return list(found.values())


def moment_of(text: str, now: datetime) -> datetime:
    """Return the moment meant by ``2h`` (that long ago), a date, or a date and time (UTC unless
    it says otherwise); SettingsError for anything else."""
    try:
        if text[-1:] in _SPANS and text[:-1].isascii() and text[:-1].isdecimal():
            return now - timedelta(**{_SPANS[text[-1]]: int(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"--since {text!r} is no moment; give 30m, 2h, 7d, 2026-11-22 or 2026-11-22T15:30:00Z"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
