"""Audit records: one gap-free, hash-chained sequence per producer.

The chain shows flips, drops and reorders inside a producer's records. A producer is one run of
one process (its id holds a fresh UUID): a restart begins a new chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from threading import Lock
from typing import Any

from contracts.clock import Clock
from contracts.codec import to_json
from contracts.events import AuditRecord
from contracts.ids import NewId
from contracts.tracing import current_ids


class AuditChain:
    """Makes the audit records of one process; safe to call from several threads."""

    def __init__(self, process: str, clock: Clock, new_id: NewId) -> None:
        self.producer = f"{process}/{new_id()}"
        self._clock = clock
        self._new_id = new_id
        self._sequence = 0
        self._previous = ""
        self._lock = Lock()

    def record(
        self, action: str, subject: str, *, reason: str = "", detail: dict[str, Any] | None = None
    ) -> AuditRecord:
        """Return the next record, carrying the ids of the current span."""
        return self.sealed(action, subject, reason=reason, detail=detail)[0]

    def sealed(
        self, action: str, subject: str, *, reason: str = "", detail: dict[str, Any] | None = None
    ) -> tuple[AuditRecord, bytes]:
        """Return the next record and its JSON, which the chain has made for its hash."""
        with self._lock:
            record = self._next(action, subject, reason, detail)
            return record, self._take(record)

    @contextmanager
    def kept(
        self, action: str, subject: str, *, reason: str = "", detail: dict[str, Any] | None = None
    ) -> Iterator[AuditRecord]:
        """Give the next record to a block that keeps it; when the block fails, there was none.

        Other threads that ask for a record wait for the end of the block.
        """
        with self._lock:
            record = self._next(action, subject, reason, detail)
            yield record
            self._take(record)

    def _next(
        self, action: str, subject: str, reason: str, detail: dict[str, Any] | None
    ) -> AuditRecord:
        trace_id, span_id = current_ids()
        return AuditRecord(
            id=self._new_id(),
            time=self._clock.now(),
            producer=self.producer,
            sequence=self._sequence,
            previous=self._previous,
            action=action,
            subject=subject,
            reason=reason,
            detail=detail or {},
            trace_id=trace_id,
            span_id=span_id,
        )

    def _take(self, record: AuditRecord) -> bytes:
        value = to_json(record)
        self._sequence += 1
        self._previous = sha256(value).hexdigest()
        return value


def record_hash(record: AuditRecord) -> str:
    """Return the sha256 of a record's JSON, in hex."""
    return sha256(to_json(record)).hexdigest()


def broken_links(records: Iterable[AuditRecord]) -> list[str]:
    """Return what is wrong with one producer's records, given in order; empty when sound."""
    problems: list[str] = []
    expected, previous = 0, ""
    for record in records:
        if record.sequence != expected:
            problems.append(f"{record.producer}: sequence {record.sequence}, expected {expected}")
        elif record.previous != previous:
            problems.append(f"{record.producer}: record {expected} does not follow the one before")
        expected, previous = record.sequence + 1, record_hash(record)
    return problems
