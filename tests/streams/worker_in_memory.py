"""One worker over partition 0 without broker and group: the log is a list, the rest is real."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import decode, encode
from contracts.events import Decision, Event, Feedback, Reward, Sample
from contracts.settings import Settings
from contracts.topics import DECISIONS, FEEDBACK, Topic
from feature_store.views import FeatureRow, Value
from streams.flow import Flow
from streams.session import Index
from streams.step import Step
from streams.tally import Tally


class Store(Protocol):
    """What the worker needs of the feature store: `feature_store.writer.FeatureWriter` has it."""

    def latest(
        self, view: str, keys: Sequence[str]
    ) -> dict[str, tuple[dict[str, Value], datetime]]: ...

    def write(self, rows: Sequence[FeatureRow]) -> int: ...


class MemoryStore:
    """The newest row per key."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], FeatureRow] = {}

    def latest(
        self, view: str, keys: Sequence[str]
    ) -> dict[str, tuple[dict[str, Value], datetime]]:
        found = {key: self.rows[view, key] for key in keys if (view, key) in self.rows}
        return {key: (dict(row.values), row.event_time) for key, row in found.items()}

    def write(self, rows: Sequence[FeatureRow]) -> int:
        for row in rows:
            before = self.rows.get((row.view, row.key))
            values = {**(before.values if before else {}), **row.values}
            self.rows[row.view, row.key] = msgspec.structs.replace(row, values=values)
        return 0


class Log:
    """Partition 0 of both topics, how far a group has committed, and what workers sent."""

    def __init__(self) -> None:
        self.sent: list[Event] = []
        self.records: dict[str, list[Received]] = {DECISIONS.name: [], FEEDBACK.name: []}
        self.committed = {DECISIONS.name: 0, FEEDBACK.name: 0}

    def append(self, event: Decision | Feedback, headers: list[tuple[str, bytes]] = []) -> None:  # noqa: B006 - never changed
        topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
        record = encode(topic, event, source="test")
        records = self.records[topic.name]
        sent = [*record.headers, *headers]
        records.append(Received(topic, 0, len(records), record.key, record.value, sent))


class WorkerDiedError(Exception):
    """A worker has lived through as many steps as it was to."""


class WorkerInMemory:
    """From a start to its death: reads the log from what was committed, and remembers nothing.

    ``dies_after`` is how many steps it lives through: delivered, half and wholly written.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        store: Store,
        clock: ManualClock,
        *,
        dies_after: int | None = None,
    ) -> None:
        self.log, self.store, self.clock = log, store, clock
        self.flow = Flow(settings, AuditChain("test", clock, lambda: "id"), source="test")
        self.flow.assign([0])
        self.tally = Tally(store.latest)
        self.position = dict(log.committed)
        self.sent: list[Event] = []
        self._left = dies_after

    def read(self, topic: Topic, count: int = 1) -> None:
        """Read the next records of a topic, as one batch."""
        start = self.position[topic.name]
        records = self.log.records[topic.name][start : start + count]
        self.position[topic.name] += len(records)
        self._recall(records)
        read = self.flow.read(records, self.clock.now())
        self._finish(read, self.flow.close(self.clock.now(), 100))

    def read_all(self) -> None:
        """Read both topics to their ends."""
        for topic in (DECISIONS, FEEDBACK):
            self.read(topic, len(self.log.records[topic.name]))

    def close(self) -> None:
        """Close what is due, all records having been read."""
        for topic, reach in self._reaches():
            end = len(self.log.records[topic.name])
            reach.see(end, self.position[topic.name], self.clock.now())
        while step := self.flow.close(self.clock.now(), 100):
            self._finish(step)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.sent if isinstance(event, kind)]

    def _reaches(self) -> list[tuple[Topic, Any]]:
        partition = self.flow.partitions[0]
        return [(DECISIONS, partition.decisions), (FEEDBACK, partition.feedback)]

    def _recall(self, records: list[Received]) -> None:
        sessions = list(self.flow.unknown_sessions(records))
        rows = self.store.latest("session", sessions)
        logs = {key: values.get("log") for key, (values, _) in rows.items()}
        indexes = {
            key: msgspec.json.decode(text, type=Index)
            for key, text in logs.items()
            if isinstance(text, str)
        }
        for wanted in self.flow.wanted(records, indexes):
            found = [self.log.records[DECISIONS.name][offset] for offset in wanted.decisions]
            found += [self.log.records[FEEDBACK.name][offset] for offset in wanted.feedback]
            self.flow.recall(wanted, found, self.clock.now())

    def _finish(self, *steps: Step) -> None:
        self._live_on()
        sent = [decode(r.topic, r.value, r.headers) for step in steps for r in step.records]
        self.sent += sent
        self.log.sent += sent
        self._live_on()
        for step in steps:
            self.flow.settle(step)
        facts = [fact for step in steps for fact in step.facts]
        if facts:
            rows = self.tally.rows(facts)
            self.store.write(rows[: len(rows) // 2])
            self._live_on()
            self.store.write(rows[len(rows) // 2 :])
            self.tally.written()
        self._live_on()
        for topic, reach in self._reaches():
            if reach.offsets.committable is not None:
                self.log.committed[topic.name] = reach.offsets.committable

    def _live_on(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise WorkerDiedError


def final_rewards(events: Sequence[Event]) -> dict[str, tuple[str, float | None]]:
    """Return what holds in the end: of the rewards of one decision the last in the log."""
    return {e.decision_id: (e.status, e.value) for e in events if isinstance(e, Reward)}


def final_samples(events: Sequence[Event]) -> dict[str, float]:
    """Return the reward of the last sample of each decision, but for those withdrawn."""
    last = {e.decision_id: e for e in events if isinstance(e, Sample)}
    return {name: sample.reward for name, sample in last.items() if not sample.withdrawn}
