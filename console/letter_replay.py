"""Sends refused records again, once each: the audit remembers which were.

The record is read from its topic, where it is whole; the letter's copy is taken when it has gone
from there. A record that is sent and not yet in the audit when this process dies is sent twice;
the id of its event makes one effect of both.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Literal

from kafka import KafkaProducer
from kafka.errors import KafkaError
from msgspec import Struct

from console.letter_log import CLIENT_ID, REPLAY_HEADER, REPLAYED, LetterRow, whole_letter
from console.table import table
from contracts.audit import AuditChain
from contracts.broker import Lookup, Received, make_producer, send_again, send_and_wait
from contracts.clock import Clock
from contracts.codec import Headers, encode
from contracts.dead_letters import KEPT_TEXT
from contracts.errors import DeadLetterReason, UnavailableError
from contracts.events import DeadLetter
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.tokens import RELEASE_HEADER, release_mark
from contracts.topics import AUDIT, TOPICS, Topic

SOURCE = "headrace/console"
SEND_SECONDS = 30.0
QUARANTINED: DeadLetterReason = "quarantined"

Outcome = Literal["sent", "would be sent", "replayed already", "failed"]


class Replay(Struct, frozen=True, kw_only=True):
    """What became of one letter.

    ``source`` is where the record was taken from: the "topic", or the copy in the "letter".
    ``offset`` is its new place, in ``partition`` of ``topic``; ``error`` says why it failed.
    """

    letter_id: str
    outcome: Outcome
    topic: str
    partition: int
    source: str = ""
    offset: int | None = None
    error: str = ""


class Replayer:
    """Sends records again in an operator's name; each replay is audited with their reason.

    ``secret`` is that of feedback: with it, what was quarantined is let out of the quarantine.
    """

    def __init__(
        self,
        kafka: Kafka,
        clock: Clock,
        new_id: NewId,
        *,
        operator: str = "",
        because: str = "",
        secret: str = "",
    ) -> None:
        self._kafka, self._operator, self._because = kafka, operator, because
        self._secret = secret.encode()
        self._chain = AuditChain("dead-letters", clock, new_id)
        self._lookup = Lookup(kafka, CLIENT_ID)
        self._producer: KafkaProducer | None = None

    def replay(
        self, rows: Sequence[LetterRow], *, again: bool = False, dry_run: bool = False
    ) -> Iterator[Replay]:
        """Yield what becomes of each letter, one after the other.

        One that cannot be sent fails alone. DeadlineError or KafkaError when the broker is away.
        """
        for row in rows:
            if row.replays and not again:
                yield _told(row, "replayed already")
                continue
            try:
                source, record = self._original(row)
            except UnavailableError as error:
                yield _told(row, "failed", error=str(error))
                continue
            if dry_run:
                yield _told(row, "would be sent", source)
            else:
                yield self._send(row, source, record)

    def close(self) -> None:
        """Close the connections."""
        self._lookup.close()
        if self._producer is not None:
            self._producer.close(timeout=1.0)

    def _original(self, row: LetterRow) -> tuple[str, Received]:
        topic = self._topic(row)
        if row.reason == QUARANTINED and not self._secret:
            raise UnavailableError(
                "feedback leaves the quarantine by the feedback secret alone; set "
                "HEADRACE_GATEWAY__FEEDBACK_SECRET to what gateway and streams have"
            )
        letter = whole_letter(self._lookup, row)
        found = self._lookup.record(topic, row.partition, row.offset)
        if found is not None and _is_of(found, letter):
            return "topic", found
        return "letter", _copied(topic, letter)

    def _topic(self, row: LetterRow) -> Topic:
        for topic in TOPICS:
            if topic.full_name(self._kafka.prefix) == row.topic:
                return topic
        raise UnavailableError(
            f"{row.topic!r} is no topic of these settings (kafka.prefix "
            f"{self._kafka.prefix!r}); give the settings that the letter was written under"
        )

    def _send(self, row: LetterRow, source: str, record: Received) -> Replay:
        ours = (REPLAY_HEADER, RELEASE_HEADER)
        headers: Headers = [pair for pair in record.headers if pair[0] not in ours]
        headers.append((REPLAY_HEADER, row.id.encode()))
        if row.reason == QUARANTINED:
            mark = release_mark(self._secret, record.value or b"")
            headers.append((RELEASE_HEADER, mark.encode()))
        marked = Received(
            record.topic, record.partition, record.offset, record.key, record.value, headers
        )
        if self._producer is None:
            self._producer = make_producer(self._kafka, CLIENT_ID)
        try:
            offset = send_again(self._producer, self._kafka, marked, SEND_SECONDS)
        except KafkaError as error:
            if error.retriable:  # the broker is away, for the next letter too
                raise
            return _told(row, "failed", source, error=f"the broker refuses it: {error}")
        self._audit(row, source, offset)
        return _told(row, "sent", source, offset=offset)

    def _audit(self, row: LetterRow, source: str, offset: int) -> None:
        assert self._producer is not None
        detail = {
            "operator": self._operator,
            "topic": row.topic,
            "partition": row.partition,
            "offset": row.offset,
            "new_offset": offset,
            "source": source,
        }
        with self._chain.kept(REPLAYED, row.id, reason=self._because, detail=detail) as record:
            send_and_wait(
                self._producer, self._kafka, encode(AUDIT, record, source=SOURCE), SEND_SECONDS
            )


def _told(
    row: LetterRow,
    outcome: Outcome,
    source: str = "",
    *,
    offset: int | None = None,
    error: str = "",
) -> Replay:
    return Replay(
        letter_id=row.id,
        outcome=outcome,
        topic=row.topic,
        partition=row.partition,
        source=source,
        offset=offset,
        error=error,
    )


def _is_of(record: Received, letter: DeadLetter) -> bool:
    """Whether a record at the letter's place is the one it is about: a log can begin anew."""
    kept = b64decode(letter.value_base64)
    value = record.value or b""
    key = None if letter.key_base64 is None else b64decode(letter.key_base64)
    same_key = record.key == key or (
        record.key is not None and key is not None and record.key[:KEPT_TEXT] == key
    )
    return same_key and len(value) == letter.value_bytes and value.startswith(kept)


def _copied(topic: Topic, letter: DeadLetter) -> Received:
    value = b64decode(letter.value_base64)
    key = None if letter.key_base64 is None else b64decode(letter.key_base64)
    if len(value) < letter.value_bytes or (key is not None and len(key) >= KEPT_TEXT):
        raise UnavailableError(
            f"the record has gone from {letter.topic}/{letter.partition} at offset "
            f"{letter.offset}, and the letter holds {len(value)} of its {letter.value_bytes} "
            "bytes; send it anew from its producer"
        )
    headers = [(name, text.encode()) for name, text in letter.headers.items() if text]
    return Received(topic, letter.partition, letter.offset, key, value, headers)


def replays_text(replays: Sequence[Replay]) -> str:
    """Return the table for people, and a line for each that failed."""
    rows = [
        (
            one.letter_id[:8],
            one.outcome,
            one.source or "-",
            f"{one.topic}/{one.partition}" + (f"@{one.offset}" if one.offset is not None else ""),
        )
        for one in replays
    ]
    told = [table(("letter", "outcome", "from the", "to"), rows)]
    told += [f"{one.letter_id[:8]}: {one.error}" for one in replays if one.error]
    return "\n".join(told)
