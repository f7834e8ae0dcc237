"""The rollout controller's side of Kafka: its state, releases, rewards, commands, audit records.

It knows nothing of verdicts. Every call either does what it says or raises KafkaError or one of
contracts.errors within a deadline; after that the same call may be made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaProducer

from contracts.audit import AuditChain
from contracts.broker import (
    Reader,
    Received,
    make_producer,
    send_and_wait,
    wait_for_broker,
)
from contracts.codec import Record, encode, trace_headers
from contracts.errors import CodecError, DeadlineError
from contracts.events import AuditRecord, Event, Rollout, RolloutCommand
from contracts.settings import Kafka
from contracts.topics import AUDIT, RELEASES, REWARDS, ROLLOUT_COMMANDS, ROLLOUTS, Topic
from contracts.tracing import current_trace_headers

CLIENT_ID = "headrace-rollout"
SOURCE = "headrace/rollout"
PROBE_SECONDS = 1.0
SEND_SECONDS = 10.0
RECALL_SECONDS = 30.0
PLAN = ("rollout_id", "plan")
"""What an audit record's detail says of the rollout and plan it is about."""


class RolloutLog:
    """Reads and writes what the controller needs; call `open` before `poll`."""

    def __init__(self, kafka: Kafka, policy: str, chain: AuditChain) -> None:
        self._kafka = kafka
        self._policy = policy
        self._chain = chain
        self._producer: KafkaProducer | None = None
        self._reader: Reader | None = None
        self._states: Reader | None = None
        self._states_end = 0
        self._unsent: AuditRecord | None = None
        self._others_to = 0
        """Up to here, what is unread of the commands is for other policies."""

    def states(self) -> Iterator[tuple[Rollout, dict[str, str]]]:
        """Yield the policy's states not yet read, to the end of the topic, with trace headers.

        What was published here is read in any case. DeadlineError when a record that is there
        does not come.
        """
        if self._states is None:
            wait_for_broker(self._kafka, PROBE_SECONDS)
            self._states = Reader(self._kafka, (ROLLOUTS,), CLIENT_ID)
        ends, quiet = self._states.ends(), 0.0
        ends = {place: max(end, self._states_end) for place, end in ends.items()}
        while any(at < ends[place] for place, at in self._states.positions().items()):
            records = self._states.poll(0.2)
            quiet = 0.0 if records else quiet + 0.2
            if quiet > RECALL_SECONDS:
                raise DeadlineError(f"rollouts: nothing came for {RECALL_SECONDS} s")
            for record in records:
                event = event_or_none(record)
                if isinstance(event, Rollout) and event.policy == self._policy:
                    yield event, trace_headers(record.headers)

    def open(self, positions: Mapping[str, int]) -> None:
        """Begin to read releases, rewards and commands there; partitions not named at their end."""
        self._close_reader()
        self._others_to = 0
        topics = (RELEASES, REWARDS, ROLLOUT_COMMANDS)
        self._reader = Reader(self._kafka, topics, CLIENT_ID, positions, from_end=True)

    def poll(self, seconds: float) -> list[Received]:
        """Return the records that arrive within ``seconds``."""
        return self._open_reader.poll(seconds)

    def rewind(self, record: Received) -> None:
        """Have `poll` return this record again, and what lies behind it in its partition."""
        self._open_reader.rewind(record)

    def positions(self) -> dict[str, int]:
        """Return the next offset of every partition read."""
        return self._open_reader.positions()

    def lag(self) -> int | None:
        """Return how many records were unread at the last fetch."""
        return self._reader.lag() if self._reader else None

    def caught_up(self) -> bool:
        """Ask the broker whether everything written so far has been read."""
        ends = self._open_reader.ends()
        return all(at >= ends[place] for place, at in self.positions().items())

    def command_waits(self) -> bool:
        """Ask the broker whether someone wrote a command for this policy that was not read yet.

        DeadlineError when a command that should be there does not come.
        """
        place = f"{ROLLOUT_COMMANDS.name}/0"
        end = self._open_reader.ends()[place]
        begin = max(self.positions()[place], self._others_to)
        if begin >= end:
            return False
        unread = self._written(ROLLOUT_COMMANDS, {place: begin}, {place: end})
        if any(isinstance(e, RolloutCommand) and e.policy == self._policy for e in list(unread)):
            return True
        self._others_to = end
        return False

    def between(self, first: Mapping[str, int], end: Mapping[str, int]) -> Iterator[Event]:
        """Yield the events of rewards from ``first`` to before ``end``; lost ones are skipped.

        DeadlineError when a record that should be there does not come.
        """
        yield from self._written(REWARDS, first, end)

    def _written(
        self, topic: Topic, first: Mapping[str, int], end: Mapping[str, int]
    ) -> Iterator[Event]:
        reader = Reader(self._kafka, (topic,), CLIENT_ID, first)
        try:
            last = reader.ends()
            wanted = {place: min(end.get(place, 0), last[place]) for place in last}
            quiet = 0.0
            while any(at < wanted[place] for place, at in reader.positions().items()):
                records = reader.poll(0.2)
                quiet = 0.0 if records else quiet + 0.2
                if quiet > RECALL_SECONDS:
                    raise DeadlineError(f"{topic.name}: nothing came for {RECALL_SECONDS} s")
                for record in records:
                    event = event_or_none(record)
                    if event and record.offset < wanted[f"{topic.name}/{record.partition}"]:
                        yield event
        finally:
            reader.close()

    def publish(self, state: Rollout, trace: Mapping[str, str]) -> None:
        """Write a state and wait until the broker has it."""
        offset = self._deliver(encode(ROLLOUTS, state, source=SOURCE, trace=trace))
        self._states_end = offset + 1

    @property
    def writer(self) -> str:
        """The name under which this run of the controller writes."""
        return self._chain.producer

    def audit(self, action: str, subject: str, reason: str, detail: dict[str, Any]) -> None:
        """Write an audit record and wait until the broker has it.

        A record that could not be written is sent again first, under its own id; so the chain has
        no gap, and a step of the same rollout and plan that is tried again leaves one record.
        """
        unsent = self._unsent
        self.flush()
        if unsent is not None and _step_of(unsent) == (action, subject, *map(detail.get, PLAN)):
            return
        self._unsent = self._chain.record(action, subject, reason=reason, detail=detail)
        self.flush()

    def flush(self) -> None:
        """Send the audit record that could not be written before, if any."""
        if self._unsent is not None:
            trace = current_trace_headers()
            self._deliver(encode(AUDIT, self._unsent, source=SOURCE, trace=trace))
            self._unsent = None

    def close(self) -> None:
        """Close all connections."""
        self._close_reader()
        if self._states is not None:
            self._states.close()
            self._states = None
        self._close_producer()

    @property
    def _open_reader(self) -> Reader:
        assert self._reader is not None, "call open() first"
        return self._reader

    def _deliver(self, record: Record) -> int:
        if self._producer is None:
            self._producer = make_producer(self._kafka, CLIENT_ID)
        try:
            return send_and_wait(self._producer, self._kafka, record, SEND_SECONDS)
        except DeadlineError:
            self._close_producer()  # or the record could still arrive long after we gave it up
            raise

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_producer(self) -> None:
        if self._producer is not None:
            try:
                self._producer.close(timeout=1.0)
            finally:
                self._producer = None


def event_or_none(record: Received) -> Event | None:
    """Return the record's event, None when it is none: a controller goes on without it."""
    try:
        return record.event()
    except CodecError:
        return None


def _step_of(record: AuditRecord) -> tuple[object, ...]:
    return (record.action, record.subject, *map(record.detail.get, PLAN))
