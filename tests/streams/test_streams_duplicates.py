"""The same decision again, after a restart: one window, one reward, one count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import decode, encode
from contracts.events import Decision, Event, Reward
from contracts.settings import Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK, REWARDS
from feature_store.writer import FeatureWriter
from streams.flow import Flow
from streams.step import Step
from streams.tally import Tally, closed_at

WINDOW = 60.0


class Run:
    """One run of a worker over partition 0, that starts at given offsets."""

    def __init__(self, settings: Settings, clock: ManualClock, writer: FeatureWriter) -> None:
        self.clock, self.writer, self.tally = clock, writer, Tally(writer.latest)
        audit = AuditChain("test", clock, lambda: "id")
        self.flow = Flow(settings, audit, source="test")
        self.flow.assign([0])

    def read(self, event: Event, offset: int) -> list[Reward]:
        topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
        record = encode(topic, event, source="test")
        received = Received(topic, 0, offset, record.key, record.value, record.headers)
        now = self.clock.now()
        old = self.flow.old([received], now)
        closed = closed_at(self.writer.latest("decision", old))
        return self._finish(self.flow.read([received], now, closed))

    def close(self) -> list[Reward]:
        self.clock.advance(2 * WINDOW)
        for reach in (self.flow.partitions[0].decisions, self.flow.partitions[0].feedback):
            reach.see(reach.offsets.next or 0, reach.offsets.next or 0, self.clock.now())
        return self._finish(self.flow.close(self.clock.now(), 100))

    def _finish(self, step: Step) -> list[Reward]:
        self.flow.settle(step)
        if step.facts:
            self.writer.write(self.tally.rows(step.facts))
        sent = [decode(r.topic, r.value, r.headers) for r in step.records if r.topic is REWARDS]
        return [event for event in sent if isinstance(event, Reward)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("duplicates")
    return Settings(state_dir=folder, streams=Streams(window_seconds=WINDOW))


@pytest.fixture(scope="module")
def writer(settings: Settings) -> FeatureWriter:
    return FeatureWriter(settings, ManualClock())


@pytest.fixture
def run(settings: Settings, clock: ManualClock, writer: FeatureWriter) -> Callable[[], Run]:
    """Start a run anew: with the same store and clock, and nothing remembered."""
    return lambda: Run(settings, clock, writer)


def test_a_closed_decision_sent_again_after_a_restart_is_a_duplicate(
    decision: Any, feedback: Any, clock: ManualClock, writer: FeatureWriter, run: Any
) -> None:
    made, first = decision(time=clock.now(), user_id="again"), run()
    first.read(made, 5)
    first.read(feedback(made, score=0.5), 0)
    assert [reward.value for reward in first.close()] == [0.5]

    second = run()
    assert second.read(made, 9) == []
    assert second.flow.counts["duplicates"] == 1
    assert second.flow.partitions[0].decisions.offsets.committable == 10
    assert second.close() == []
    ((values, _),) = writer.latest("decision", [made.id]).values()
    assert (values["status"], values["reward"]) == ("final", 0.5)
    ((counts, _),) = writer.latest("user", [made.user_id]).values()
    assert (counts["decisions"], counts["rewards"]) == (1, 1)


def test_a_closed_decision_that_was_not_committed_is_read_again_with_its_feedback(
    decision: Any, feedback: Any, clock: ManualClock, run: Any
) -> None:
    made, rewards = decision(time=clock.now()), []
    rating = feedback(made, score=0.5)
    for worker in (run(), run()):
        worker.read(made, 5)
        worker.read(rating, 0)
        rewards += worker.close()
    assert [(reward.id, reward.value) for reward in rewards] == 2 * [(rewards[0].id, 0.5)]


def test_a_decision_is_looked_up_only_when_its_window_is_over(
    decision: Any, clock: ManualClock, run: Any
) -> None:
    flow = run().flow
    ages = (0.0, WINDOW - 1, WINDOW, 10 * WINDOW)
    made = [decision(time=clock.now() - timedelta(seconds=age)) for age in ages]
    received = []
    for number, event in enumerate(made):
        record = encode(DECISIONS, event, source="test")
        received.append(Received(DECISIONS, 0, number, record.key, record.value, record.headers))
    received.append(Received(DECISIONS, 0, 9, b"", b"no event", []))
    assert flow.old(received, clock.now()) == [event.id for event in made[2:]]
