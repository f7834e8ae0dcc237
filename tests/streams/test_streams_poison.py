"""Ten thousand poison records through the flow: none escapes, and the sound ones are rewarded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec.structs import replace

from contracts.audit import AuditChain, broken_links
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import MAX_VALUE_BYTES, decode, encode
from contracts.errors import CodecError
from contracts.events import AuditRecord, DeadLetter, Decision, Event, Reward, Safety
from contracts.ids import uuid7_ids
from contracts.settings import RewardComponent, Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK
from streams.flow import Flow
from streams.step import Step
from tests.poison import Poisoner, poison_seed
from tests.streams.conftest import UNPROVEN

RULES = Streams(
    window_seconds=600.0, quarantine=UNPROVEN, reward={"rating": RewardComponent(weight=1.0)}
)
POISON, SOUND_EVERY, BATCH = 10_000, 50, 100
NOW = datetime(2026, 11, 22, 15, 32, tzinfo=UTC)  # a minute after the golden messages
HEADER_BYTES = 2_000
"""With the largest value this is below what brokers commonly take."""

E = TypeVar("E", bound=Event)


class Run:
    """A flow over partition 0 of both topics, and all that came out of it."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW)
        audit = AuditChain("test", self.clock, uuid7_ids(self.clock))
        self.flow = Flow(Settings(streams=RULES), audit, source="test")
        self.flow.assign([0])
        self.sent: list[Event] = []

    def read(self, batch: list[Received]) -> None:
        now = self.clock.now()
        self.flow.unknown_sessions(batch)  # the worker asks both before each batch
        self.flow.wanted(batch, {})
        self.take(self.flow.read(batch, now))
        self.take(self.flow.close(now, BATCH))
        self.clock.advance(0.1)

    def close(self) -> None:
        """Close every window, as when time has passed and all was read."""
        self.clock.advance(2 * RULES.window_seconds)
        partition = self.flow.partitions[0]
        for reach in (partition.decisions, partition.feedback):
            reach.see(reach.offsets.next or 0, 0, self.clock.now())
        while step := self.flow.close(self.clock.now(), BATCH):
            self.take(step)

    def take(self, step: Step) -> None:
        self.flow.settle(step)
        for record in step.records:
            assert len(record.value) <= MAX_VALUE_BYTES
            assert sum(len(name) + len(raw) for name, raw in record.headers) <= HEADER_BYTES
            self.sent.append(decode(record.topic, record.value, record.headers))

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.sent if isinstance(event, kind)]


def with_sound_ones(
    poison: Iterator[Received], decision: Any, feedback: Any
) -> Iterator[tuple[Received, bool]]:
    """Yield records with new offsets, and whether each is one of the sound among them."""
    offsets = Counter[str]()

    def placed(record: Received) -> Received:
        offsets[record.topic.name] += 1
        return replace(record, offset=offsets[record.topic.name] - 1)

    for number, record in enumerate(poison):
        yield placed(record), False
        if number % SOUND_EVERY == 0:
            made = decision(time=NOW, session_id=f"sound-{number}")
            for topic, event in ((DECISIONS, made), (FEEDBACK, feedback(made))):
                sent = encode(topic, event, source="test")
                sound = Received(topic, 0, 0, sent.key, sent.value, sent.headers)
                yield placed(sound), True


def event_of(record: Received) -> Event | None:
    try:
        return record.event()
    except CodecError:
        return None


def test_ten_thousand_poison_records_stop_nothing(decision: Any, feedback: Any) -> None:
    poison = Poisoner(poison_seed()).records((DECISIONS, FEEDBACK), POISON)
    records = list(with_sound_ones(poison, decision, feedback))
    run = Run()
    for start in range(0, len(records), BATCH):
        run.read([record for record, _ in records[start : start + BATCH]])
    run.close()

    refused = [letter for letter in run.of(DeadLetter) if letter.reason != "quarantined"]
    letters = Counter((letter.topic, letter.offset) for letter in refused)
    events = {(r.topic.name, r.offset): event_of(r) for r, _ in records}
    assert set(letters.values()) == {1}
    assert letters.keys() == {place for place, event in events.items() if event is None}
    print(run.flow.counts, Counter(letter.reason for letter in refused))

    partition = run.flow.partitions[0]
    for topic, reach in ((DECISIONS, partition.decisions), (FEEDBACK, partition.feedback)):
        read = sum(name == topic.name for name, _ in events)
        assert reach.offsets.committable == reach.offsets.next == read

    first = {e.id: e for e in reversed(list(events.values())) if isinstance(e, Decision)}
    rewarded = [key for key, event in first.items() if event.assignment.arm != "shadow"]
    assert Counter(event.decision_id for event in run.of(Safety)) == Counter(first.keys())
    assert Counter(event.decision_id for event in run.of(Reward)) == Counter(rewarded)
    rewards = {event.decision_id: event.value for event in run.of(Reward)}
    sound = [events[r.topic.name, r.offset] for r, is_sound in records if is_sound]
    ratings = {rewards[event.id] for event in sound if isinstance(event, Decision)}
    assert ratings == {1.0}
    assert broken_links(run.of(AuditRecord)) == []
