"""The thread that carries the outbox to Kafka, in order, each event once as far as it can see.

After every (re)connection it reads what the topics hold since its bookmarks and skips the events
that already arrived: a batch whose acknowledgement was lost is not written twice, across restarts
of broker and gateway. (A broker that accepts a request of a closed connection after that look may
still make a duplicate; readers drop it by event id.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from contracts.broker import Reader, make_producer, send
from contracts.codec import header
from contracts.errors import DeadlineError, HeadraceError
from contracts.settings import Kafka
from contracts.topics import AUDIT, DECISIONS, FEEDBACK
from serving.outbox import Entry, Outbox

BATCH = 500
GATHER_SECONDS = (
    0.1  # what comes meanwhile goes along: a delivery costs much, a record in it little
)
ACK_SECONDS = 10.0
TAIL_SECONDS = 30.0
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0)
BOOKMARK_SECONDS = 30.0
STOP_SECONDS = 2.0  # a thread that waits for a dead broker is left behind: all is on disk
TOPICS = (DECISIONS, FEEDBACK, AUDIT)
REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError)

log = logging.getLogger("headrace.outbox")


class _RefusedError(Exception):
    """The broker refused a record for its size: the producer fails all that is sent after it."""


class Delivery:
    """Delivers an outbox in a background thread; ``refused`` counts records no broker takes."""

    def __init__(self, outbox: Outbox, kafka: Kafka, client_id: str) -> None:
        self.note = "connecting"
        self.refused = 0
        self._outbox = outbox
        self._kafka = kafka
        self._client_id = client_id
        self._alone = 0
        """So many entries go one by one: one of them was refused, and it is not known which."""

        self._stopping = Flag()
        self._thread = Thread(target=self._run, name="outbox-delivery", daemon=True)

    def start(self) -> None:
        """Start the thread; the broker may be down."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Deliver what is there for up to ``seconds``, then stop; the rest stays on disk."""
        deadline = time.monotonic() + seconds
        while not self.note and self._outbox.undelivered and time.monotonic() < deadline:
            self._stopping.wait(0.02)
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                self._connection()
                attempt = 0
            except _RefusedError:
                continue  # with a new producer; an entry is settled each time, or a batch split
            except Exception as error:  # noqa: BLE001 - edge of the thread: any failure is an outage to wait out
                attempt = 0 if not self.note else attempt + 1
                self._outage(error)
            self._stopping.wait(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)])

    def _outage(self, error: Exception) -> None:
        first = not self.note or self.note == "connecting"
        self.note = f"broker {self._kafka.bootstrap} unreachable: {type(error).__name__}: {error}"
        if first:
            expected = isinstance(error, KafkaError | HeadraceError | OSError)
            log.warning("%s; events wait on disk", self.note, exc_info=not expected)

    def _connection(self) -> None:
        """Deliver until stopped; raise when the broker is lost."""
        reader = Reader(
            self._kafka,
            TOPICS,
            self._client_id,
            self._outbox.bookmarks,
            from_end=not self._outbox.bookmarks,
        )
        producer: KafkaProducer | None = None
        try:
            arrived = _ids_to_end(reader, self._stopping.is_set)
            self._outbox.advance([], reader.positions() if not arrived else {})
            producer = make_producer(self._kafka, self._client_id)
            if self.note != "connecting":
                log.info("broker %s is back; delivering", self._kafka.bootstrap)
            self.note = ""
            self._deliver(producer, reader, arrived)
        finally:
            reader.close()
            if producer is not None:
                producer.close(timeout=0)

    def _deliver(self, producer: KafkaProducer, reader: Reader, arrived: set[str]) -> None:
        bookmarked = time.monotonic()
        while not self._stopping.is_set():
            if self._outbox.wait(0.2):
                if self._outbox.undelivered < BATCH and not self._alone:
                    self._stopping.wait(GATHER_SECONDS)
                batch = self._outbox.pending(1 if self._alone else BATCH)
                self._deliver_batch(producer, batch, arrived)
                if not self._alone:
                    arrived = set()
            if time.monotonic() - bookmarked > BOOKMARK_SECONDS:
                self._outbox.advance([], reader.ends())
                bookmarked = time.monotonic()

    def _deliver_batch(
        self, producer: KafkaProducer, batch: list[Entry], arrived: set[str]
    ) -> None:
        """Deliver what has not arrived; _RefusedError when the broker refused some of it."""
        fresh = [entry for entry in batch if entry.event_id not in arrived]
        try:
            bookmarks = self._send(producer, fresh)
        except REFUSED as error:
            if len(batch) > 1:
                self._alone = len(batch)
            else:
                self._refuse(batch[0], error)
                self._settle(batch, {})
            raise _RefusedError from error
        self._settle(batch, bookmarks)

    def _settle(self, batch: list[Entry], bookmarks: dict[str, int]) -> None:
        self._outbox.advance(batch, bookmarks)
        self._alone = max(0, self._alone - len(batch))

    def _send(self, producer: KafkaProducer, entries: list[Entry]) -> dict[str, int]:
        """Send and wait for all acknowledgements; return the next offsets they imply.

        The producer is not flushed: that would wait for a batch which the client has split. When
        the error of a refusal is raised, nothing is under way any more.
        """
        sent: list[Any] = []
        too_large: list[tuple[Entry, Exception]] = []
        for entry in entries:
            if entry.record is None:
                log.error("outbox: skipped a damaged line before %s", entry.end)
                continue
            try:
                sent.append(send(producer, self._kafka, entry.record))
            except MessageSizeTooLargeError as error:
                too_large.append((entry, error))
        deadline = time.monotonic() + ACK_SECONDS
        bookmarks: dict[str, int] = {}
        errors: list[KafkaError] = []
        for future in sent:
            try:
                placed = future.get(timeout=max(0.0, deadline - time.monotonic()))
            except KafkaError as error:
                errors.append(error)
                continue
            name = f"{placed.topic.removeprefix(self._kafka.prefix)}/{placed.partition}"
            bookmarks[name] = max(bookmarks.get(name, 0), placed.offset + 1)
        if errors:
            raise next((error for error in errors if isinstance(error, REFUSED)), errors[0])
        for entry, reason in too_large:
            self._refuse(entry, reason)
        return bookmarks

    def _refuse(self, entry: Entry, error: Exception) -> None:
        self.refused += 1
        log.error("outbox: broker refuses event %s for its size (%s)", entry.event_id, error)


def _ids_to_end(reader: Reader, stopped: Callable[[], bool]) -> set[str]:
    """Return the event ids from the reader's positions to the end of the topics now."""
    ends = reader.ends()
    found: set[str] = set()
    deadline = time.monotonic() + TAIL_SECONDS
    while any(at < ends[place] for place, at in reader.positions().items()):
        if stopped() or time.monotonic() > deadline:
            raise DeadlineError(f"reading the tail of the topics took over {TAIL_SECONDS} s")
        for record in reader.poll(0.2):
            found.add(header(record.headers, "ce_id") or "")
            deadline = time.monotonic() + TAIL_SECONDS
    return found
