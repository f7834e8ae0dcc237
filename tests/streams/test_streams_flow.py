"""What one partition leads to, step by step, without broker or store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import decode, encode
from contracts.events import AuditRecord, Decision, Event, Message, Sample
from contracts.settings import DisallowedTopic, Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.views import FeatureRow
from streams import attribution, delivery
from streams.delivery import FeatureLog
from streams.flow import Flow
from streams.step import Step
from tests.messages import calls, says

WINDOW = 60.0
MEDICAL = DisallowedTopic(name="medical", patterns=(r"\bdos(e|age)\b",))


class Run:
    """A flow over partition 0, given events one by one."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        settings = Settings(streams=Streams(window_seconds=WINDOW, disallowed_topics=(MEDICAL,)))
        audit = AuditChain("test", self.clock, lambda: "id")
        self.flow = Flow(settings, audit, source="test")
        self.flow.assign([0])
        self.sent: list[Event] = []

    def read(self, event: Event, offset: int) -> Step:
        topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
        record = encode(topic, event, source="test")
        received = Received(topic, 0, offset, record.key, record.value, record.headers)
        return self._finish(self.flow.read([received], self.clock.now()))

    def close(self) -> None:
        self.clock.advance(2 * WINDOW)
        for reach in (self.flow.partitions[0].decisions, self.flow.partitions[0].feedback):
            reach.see(reach.offsets.next or 0, 0, self.clock.now())
        self._finish(self.flow.close(self.clock.now(), 100))

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.sent if isinstance(event, kind)]

    def audit(self, action: str) -> list[AuditRecord]:
        return [record for record in self.of(AuditRecord) if record.action == action]

    def _finish(self, step: Step) -> Step:
        self.flow.settle(step)
        self.sent += [decode(r.topic, r.value, r.headers) for r in step.records]
        return step


@pytest.mark.parametrize(
    ("question", "wanted", "rule"),
    [
        ("Who can help?", says("Write to jane.doe@example.org"), "personal-data/e-mail"),
        ("The key?", says("AKIAIOSFODNN7EXAMPLE"), "secret/aws-access-key"),
        ("Who?", calls("mail", '{"to":"jane.doe@example.org"}'), "personal-data/e-mail"),
        ("What dosage is right?", says("Two."), "disallowed-topic/medical"),
        ("What dosage is right?", calls("escalate"), None),
        ("I am jane.doe@example.org", says("Noted: jane.doe@example.org"), None),
        ("How do I reset it?", says("Hold it for ten seconds."), None),
    ],
)
def test_the_learner_is_given_no_correction_that_would_be_a_violation(
    decision: Any, feedback: Any, question: str, wanted: Message, rule: str | None
) -> None:
    run = Run()
    made = decision(question, action="refuse", time=run.clock.now())
    event = feedback(made, "correction", correction=wanted)
    run.read(made, 0)
    run.read(event, 0)
    run.close()
    (sample,) = run.of(Sample)
    (record,) = run.audit("reward.closed")
    withheld = {"feedback_id": event.id, "findings": [rule]} if rule else None
    assert sample.correction == (None if rule else wanted)
    assert record.detail["correction_withheld"] == withheld
    assert run.flow.counts["corrections_withheld"] == (rule is not None)


def test_feedback_dropped_for_want_of_room_leaves_a_record(
    decision: Any, feedback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "MAX_WAITING", 3)
    run = Run()
    events = [feedback(decision(id=f"unknown-{number}")) for number in range(5)]
    for number, event in enumerate(events):
        run.read(event, number)
    dropped = run.audit("feedback.dropped")
    assert [record.detail["feedback_id"] for record in dropped] == [e.id for e in events[:2]]
    assert {record.reason for record in dropped} == {"unknown"}
    assert run.flow.partitions[0].feedback.offsets.committable == 2


def test_late_feedback_is_set_aside_whether_it_is_read_before_or_after_its_decision(
    decision: Any, feedback: Any
) -> None:
    for feedback_first in (True, False):
        run = Run()
        made = decision(time=run.clock.now())
        late = feedback(made, time=made.time + timedelta(seconds=WINDOW + 1))
        for event in (late, made) if feedback_first else (made, late):
            run.read(event, 0)
        (record,) = run.audit("feedback.dropped")
        assert (record.subject, record.reason) == (made.id, "late")
        assert (run.flow.counts["feedback"], run.flow.counts["set_aside"]) == (0, 1)
        assert run.flow.partitions[0].feedback.offsets.committable == 1


def test_feedback_read_before_its_decision_is_joined_in_the_audit_when_that_comes(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    made = decision(time=run.clock.now())
    run.read(feedback(made), 0)
    assert run.audit("feedback.joined") == []
    run.read(made, 0)
    (joined,) = run.audit("feedback.joined")
    assert joined.subject == made.id
    assert joined.sequence > run.audit("decision.admitted")[0].sequence


class _BrokenStore:
    """A writer whose store is away."""

    def latest(self, view: str, keys: Sequence[str]) -> dict[str, Any]:
        raise OSError("no store")

    def write(self, rows: Sequence[FeatureRow]) -> None:
        raise OSError("no store")


def test_features_that_a_broken_store_did_not_take_are_said_to_be_given_up(
    decision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_SECONDS", (0.0,))
    log = FeatureLog(_BrokenStore())  # type: ignore[arg-type] # a writer by its two methods
    run = Run()
    made = decision(time=run.clock.now())
    step = run.read(made, 0)
    written = asyncio.run(log.record(step.facts, shared=False))
    told = Step("test")
    run.flow.trail.features(told, step.facts, written=written)
    (record,) = [decode(r.topic, r.value, r.headers) for r in told.records]
    assert isinstance(record, AuditRecord)
    assert (record.action, record.detail) == ("features.given-up", {"decisions": [made.id]})
    assert log.failures == 1
