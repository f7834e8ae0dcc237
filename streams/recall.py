"""What was forgotten of a session is read from the log again when something late concerns it.

The places are in the session's `Index`, which is kept in the feature store; here is which of them
are needed for the records at hand, and how a `Session` is made of what is read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec
from msgspec import Struct

from contracts.broker import Received
from contracts.codec import trace_headers
from contracts.errors import CodecError
from contracts.events import Decision, Feedback, Safety
from contracts.topics import DECISIONS
from streams.attribution import Attribution
from streams.session import Arrival, Index, Session, Turn
from streams.waits import Waits


class Head(Struct, frozen=True):
    """What identifies, dates and places an event, read without the rest."""

    id: str
    time: datetime
    session_id: str
    decision_id: str = ""


class Wanted(Struct, frozen=True):
    """A session to be read again: its partition and the offsets of decisions and feedback."""

    session_id: str
    partition: int
    index: Index
    decisions: tuple[int, ...] = ()
    feedback: tuple[int, ...] = ()


_heads = msgspec.json.Decoder(Head)


def head_of(record: Received) -> Head | None:
    """Return the head of a record, None of one that admission will refuse."""
    try:
        head = _heads.decode(record.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return head if head.time.tzinfo is not None else None


def unknown_sessions(
    records: Iterable[Received], partitions: Mapping[int, Attribution]
) -> dict[str, int]:
    """Return the sessions of these records that are not in memory, with their partitions."""
    found = {}
    for record in records:
        partition, head = partitions.get(record.partition), head_of(record)
        if partition is not None and head is not None and head.session_id not in partition.sessions:
            found[head.session_id] = record.partition
    return found


def wanted_sessions(
    records: Iterable[Received],
    partitions: Mapping[int, Attribution],
    indexes: Mapping[str, Index],
) -> list[Wanted]:
    """Return which sessions must be read again before these records are taken.

    ``indexes`` are those of sessions that are not in memory; where nothing has to be read, the
    index alone is what to take in.
    """
    needed: dict[str, bool] = {}
    places: dict[str, int] = {}
    for record in records:
        partition, head = partitions.get(record.partition), head_of(record)
        if partition is None or head is None:
            continue
        session = partition.sessions.get(head.session_id)
        index = session.index if session else indexes.get(head.session_id, Index())
        if index.partition != record.partition:
            continue
        places[head.session_id] = record.partition
        missing = not (session and _all_in_memory(session, index))
        bears = missing and _bears_on(head, record, index, partition.waits)
        needed[head.session_id] = needed.get(head.session_id, False) or bears
    found = []
    for session_id, is_needed in needed.items():
        partition = partitions[places[session_id]]
        session = partition.sessions.get(session_id)
        if session and not is_needed:
            continue
        index = session.index if session else indexes[session_id]
        offsets = tuple(place.offset for place in index.places if place.is_rewarded)
        whole = (offsets, index.feedback) if is_needed else ((), ())
        found.append(Wanted(session_id, places[session_id], index, *whole))
    return found


def session_of(
    wanted: Wanted,
    records: Iterable[Received],
    judge: Callable[[Decision, datetime], Safety],
    waits: Waits,
    now: datetime,
) -> Session:
    """Return the session as its records tell it; what is not what the index says is left out."""
    session = Session(id=wanted.session_id, index=wanted.index)
    places = {place.offset: place for place in wanted.index.places}
    for record in records:
        try:
            event = record.event()
        except CodecError:
            continue
        if isinstance(event, Feedback) and event.session_id == wanted.session_id:
            session.arrivals[event.id] = Arrival(
                feedback=event,
                offset=record.offset,
                heard_at=min(event.time, now),
                drop_at=now,
                joined=True,
                let_go=True,
            )
        place = places.get(record.offset)
        if isinstance(event, Decision) and place and event.id == place.decision_id:
            session.add(
                Turn(
                    decision=event,
                    safety=judge(event, now),
                    trace=trace_headers(record.headers),
                    offset=record.offset,
                    decided_at=min(event.time, now),
                    deadline=min(event.time, now) + waits.window,
                    ready_at=now,
                    state="released",
                    revision=place.revision,
                    content=place.content,
                    value=place.value,
                    re_asked=place.re_asked,
                    reports=place.reports,
                )
            )
    return session


def _all_in_memory(session: Session, index: Index) -> bool:
    return all(p.decision_id in session.turns for p in index.places if p.is_rewarded)


def _bears_on(head: Head, record: Received, index: Index, waits: Waits) -> bool:
    """Say whether a record can change the reward of a decision that was forgotten."""
    if record.topic is DECISIONS:
        here = [place for place in index.places if place.decision_id == head.id]
        if here and here[0].offset != record.offset:
            return False  # a duplicate
        if here and here[0].is_rewarded:
            return True  # the same record, read again: it is counted again
        return any(p.is_rewarded and abs(head.time - p.time) <= waits.near for p in index.places)
    if record.offset in index.feedback:
        return False
    return any(
        place.is_rewarded and (place.decision_id == head.decision_id or not head.decision_id)
        for place in index.places
    )
