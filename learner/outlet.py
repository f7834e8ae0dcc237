"""What the learner writes to Kafka: audit records, dead letters and releases.

A broker that is away is waited for, with a deadline; nothing is given up silently.
"""

from __future__ import annotations

import logging
from threading import Event as Flag
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError

from contracts.audit import AuditChain
from contracts.broker import Received, make_producer, send_and_wait
from contracts.clock import Clock
from contracts.codec import encode
from contracts.dead_letters import dead_letter
from contracts.errors import CodecError, DeadlineError
from contracts.events import Event
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import AUDIT, DEAD_LETTERS, Topic
from contracts.tracing import current_trace_headers

SOURCE = "headrace/learner"
WAIT_SECONDS = 300.0
_TRY_SECONDS = 5.0
_log = logging.getLogger("learner")


class Output(Protocol):
    """Where the learner says what it does."""

    def send(self, topic: Topic, event: Event) -> None:
        """Send an event."""
        ...

    def audit(self, action: str, subject: str, detail: dict[str, Any], reason: str = "") -> None:
        """Write an audit record."""
        ...

    def dead_letter(self, record: Received, error: CodecError) -> None:
        """Put a record aside that gives no sample."""
        ...

    def close(self) -> None:
        """Let go of the broker."""
        ...


class Silence:
    """Tells nobody: for a replay, whose versions are released by no one."""

    def send(self, topic: Topic, event: Event) -> None:
        """Send nothing."""

    def audit(self, action: str, subject: str, detail: dict[str, Any], reason: str = "") -> None:
        """Write nothing."""

    def dead_letter(self, record: Received, error: CodecError) -> None:
        """Leave the record where it is: the learner has put it aside."""

    def close(self) -> None:
        """Do nothing."""


class Outlet:
    """A producer that waits for the broker; one per process, for one thread."""

    def __init__(self, kafka: Kafka, clock: Clock, new_id: NewId, stop: Flag) -> None:
        self._kafka = kafka
        self._clock = clock
        self._stop = stop
        self._chain = AuditChain("learner", clock, new_id)
        self._producer: KafkaProducer | None = None

    def send(self, topic: Topic, event: Event) -> None:
        """Send an event and wait until the broker has it.

        DeadlineError after 300 s without a broker, or when the process is asked to stop while it
        waits.
        """
        record = encode(topic, event, source=SOURCE, trace=current_trace_headers())
        deadline = self._clock.monotonic() + WAIT_SECONDS
        while True:
            try:
                if self._producer is None:
                    self._producer = make_producer(self._kafka, "headrace-learner")
                send_and_wait(self._producer, self._kafka, record, _TRY_SECONDS)
            except (KafkaError, DeadlineError) as error:
                if self._stop.wait(0.5) or self._clock.monotonic() > deadline:
                    raise DeadlineError(
                        f"{topic.name}: {self._kafka.bootstrap} did not take {event.id} ({error}); "
                        "start the learner again when the broker is up"
                    ) from error
                _log.warning("waiting for the broker to take a record of %s: %s", topic.name, error)
                self.close()
            else:
                return

    def audit(self, action: str, subject: str, detail: dict[str, Any], reason: str = "") -> None:
        """Write the next audit record of this process."""
        self.send(AUDIT, self._chain.record(action, subject, reason=reason, detail=detail))

    def dead_letter(self, record: Received, error: CodecError) -> None:
        """Put a record aside that gives no sample; the same record gets the same id."""
        full_name = record.topic.full_name(self._kafka.prefix)
        now = self._clock.now()
        letter = dead_letter(record, full_name, error.reason, error.detail, now)
        self.send(DEAD_LETTERS, letter)
        subject = f"{letter.topic}/{letter.partition}/{letter.offset}"
        self.audit("dead-letter", subject[-128:], {"id": letter.id}, letter.reason)

    def close(self) -> None:
        """Close the producer; the next send opens another."""
        if self._producer is not None:
            self._producer.close(timeout=1)
        self._producer = None
