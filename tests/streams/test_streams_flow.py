"""What one partition leads to, step by step, without broker or store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import nan
from typing import Any

import msgspec
import pytest

from contracts.audit import AuditChain, broken_links
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import decode, encode
from contracts.events import (
    Assignment,
    AuditRecord,
    DeadLetter,
    Decision,
    Event,
    GuardReport,
    Message,
    Preference,
    Reward,
    Safety,
    Sample,
    Timings,
)
from contracts.settings import DisallowedTopic, Gateway, RewardComponent, Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.views import FeatureRow
from guard.layers import MAX_FINDINGS
from streams import attribution, delivery, flow
from streams.delivery import FeatureLog
from streams.facts import MAX_SECONDS
from streams.flow import Flow
from streams.reward import Rewarding
from streams.safety import judge
from streams.session import MAX_FEEDBACK
from streams.signals import Signal, rating
from streams.step import Step
from streams.tally import Tally
from tests.messages import calls, says
from tests.streams.conftest import UNPROVEN
from tests.streams.worker_in_memory import Log, MemoryStore, WorkerInMemory

WINDOW = 60.0
SECRET = "a secret of the tests, long enough for it"
MEDICAL = DisallowedTopic(name="medical", patterns=(r"\bdos(e|age)\b",))


class Run:
    """A flow over partition 0, given events one by one."""

    def __init__(self, **section: Any) -> None:
        self.clock = ManualClock()
        streams = Streams(
            window_seconds=WINDOW, disallowed_topics=(MEDICAL,), quarantine=UNPROVEN, **section
        )
        settings = Settings(streams=streams, gateway=Gateway(feedback_secret=SECRET))
        audit = AuditChain("test", self.clock, lambda: "id")
        self.flow = Flow(settings, audit, source="test")
        self.flow.assign([0])
        self.sent: list[Event] = []

    def read(self, event: Event, offset: int) -> Step:
        topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
        record = encode(topic, event, source="test")
        received = Received(topic, 0, offset, record.key, record.value, record.headers)
        return self.take(self.flow.read([received], self.clock.now()))

    def close(self, after: float = 2 * WINDOW) -> None:
        self.clock.advance(after)
        for reach in (self.flow.partitions[0].decisions, self.flow.partitions[0].feedback):
            reach.see(reach.offsets.next or 0, 0, self.clock.now())
        self.take(self.flow.close(self.clock.now(), 100))

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.sent if isinstance(event, kind)]

    def audit(self, action: str) -> list[AuditRecord]:
        return [record for record in self.of(AuditRecord) if record.action == action]

    def take(self, step: Step) -> Step:
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


def test_what_was_said_of_the_guards_words_corrects_no_policy(decision: Any, feedback: Any) -> None:
    run = Run(send_censored=True)
    report = GuardReport(action="blocked", where="answer", drawn=says("Write to jane@example.org"))
    made = msgspec.structs.replace(decision(time=run.clock.now()), guard=report)
    run.read(made, 0)
    run.read(feedback(made, "correction", correction=says("Ask at the desk.")), 0)
    run.close()
    (sample,) = run.of(Sample)
    assert (sample.violation, sample.correction) == (True, None)
    assert run.of(Preference) == []


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
    assert [letter.reason for letter in run.of(DeadLetter)] == 2 * ["quarantined"]
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


def test_the_audit_names_the_rules_that_a_decision_broke(decision: Any) -> None:
    run = Run()
    leaky = "Write to jane.doe@example.org with AKIAIOSFODNN7EXAMPLE"
    made = decision("What dosage is right?", answer=leaky, time=run.clock.now())
    run.read(made, 0)
    (record,) = run.audit("safety.judged")
    (safety,) = run.of(Safety)
    assert record.subject == made.id
    assert record.detail == {
        "safety_id": safety.id,
        "violation": True,
        "risk": safety.risk,
        "findings": ["secret/aws-access-key", "personal-data/e-mail", "disallowed-topic/medical"],
    }


POISON = "my number is 4711"


def _failing_judge(*settings: Any) -> Callable[[Decision, datetime], Safety]:
    """Return a judge that cannot judge one question, and quotes it in its error."""
    sound = judge(*settings)

    def judged(decision: Decision, now: datetime) -> Safety:
        question = decision.messages[-1].content
        if question == POISON:
            raise ValueError(f"cannot judge {question!r}")
        return sound(decision, now)

    return judged


def test_a_decision_that_cannot_be_judged_is_a_dead_letter_and_stops_nothing(
    decision: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flow, "judge", _failing_judge)
    run = Run()
    run.read(decision(POISON, time=run.clock.now()), 0)
    (letter,) = run.of(DeadLetter)
    assert (letter.topic, letter.partition, letter.offset) == ("decisions", 0, 0)
    assert (letter.reason, "ValueError" in letter.detail) == ("failed", True)
    (record,) = run.audit("dead-letter")
    assert (record.subject, record.reason) == ("decisions/0/0", "failed")
    assert record.detail == {"id": letter.id}
    assert "decisions/0@0 failed: ValueError" in caplog.text
    assert POISON not in caplog.text

    sound = decision(time=run.clock.now())
    run.read(sound, 1)
    run.close()
    assert [reward.decision_id for reward in run.of(Reward)] == [sound.id]
    assert run.flow.partitions[0].decisions.offsets.committable == 2


def test_feedback_that_gives_no_reward_is_told_and_the_reward_goes_without_it(
    decision: Any, feedback: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run()
    made = msgspec.structs.replace(decision(time=run.clock.now()), answer=calls("search"))
    too_deep = calls("search", f'{{"{POISON}":' + "[" * 100_000)
    sound = decision(session_id="other", time=run.clock.now())
    for event in (made, sound):
        run.read(event, run.flow.counts["decisions"])
    run.read(feedback(made, "correction", correction=too_deep), 0)
    run.read(feedback(sound), 1)
    run.close()

    (failed,) = run.audit("reward.failed")
    assert (failed.subject, failed.reason) == (made.id, "RecursionError")
    assert f"reward of {made.id} failed: RecursionError" in caplog.text
    assert POISON not in caplog.text
    assert [(r.decision_id, r.status) for r in run.of(Reward)] == [
        (made.id, "censored"),
        (sound.id, "final"),
    ]
    assert [record.subject for record in run.audit("reward.closed")] == [made.id, sound.id]
    assert run.flow.partitions[0].decisions.offsets.committable == 2


@pytest.mark.parametrize("send_censored", [True, False])
def test_a_silent_decisions_sample_goes_out_without_a_reward_and_again_when_one_comes(
    decision: Any, feedback: Any, *, send_censored: bool
) -> None:
    streams = Streams(window_seconds=WINDOW, quarantine=UNPROVEN, send_censored=send_censored)
    clock = ManualClock()
    worker = WorkerInMemory(Settings(streams=streams), log := Log(), MemoryStore(), clock)
    made = decision(time=clock.now())
    late = feedback(made, time=made.time + timedelta(seconds=WINDOW / 2))
    back = feedback(made, "retraction", retracts=late.id, time=late.time + timedelta(seconds=1))
    for event in (made, late, back):
        log.append(event)
        worker.read_all()
        clock.advance(2 * WINDOW)
        worker.close()
    worker.read_all()

    sent = [(s.revision, s.status, s.reward, s.withdrawn) for s in worker.of(Sample)]
    silent = [(0, "censored", 0.0, False)] if send_censored else []
    assert sent == [*silent, (1, "final", 1.0, False), (2, "censored", 0.0, True)]


def _longest(number: int) -> str:
    """Return an id that takes as many bytes in JSON as any can: six for each control character."""
    return "\x01" * 122 + f"{number:06}"


def test_audit_records_of_the_longest_values_fit_so_that_their_chain_has_no_gap(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    leaks = " ".join(f"someone.{number}@example.org" for number in range(2 * MAX_FINDINGS))
    ids = dict.fromkeys(["id", "session_id", "user_id"], _longest(0))
    assignment = Assignment(policy=_longest(0), policy_version=_longest(0))
    made = decision(answer=leaks, time=run.clock.now(), assignment=assignment, **ids)
    (opened,) = run.read(made, 0).facts
    for number in range(MAX_FEEDBACK - 1):
        run.read(feedback(made, id=_longest(number)), number)
    wanted = feedback(made, "correction", correction=says(leaks), id=_longest(99))
    run.read(wanted, MAX_FEEDBACK)
    run.close()
    facts = [msgspec.structs.replace(opened, decision_id=_longest(n)) for n in range(2_000)]
    step = Step("test")
    run.flow.trail.features(step, facts, written=True)
    run.take(step)

    (judged,), (closed,) = run.audit("safety.judged"), run.audit("reward.closed")
    assert len(judged.detail["findings"]) == MAX_FINDINGS
    assert len(closed.detail["feedback"]) == MAX_FEEDBACK
    assert len(closed.detail["correction_withheld"]["findings"]) == MAX_FINDINGS
    assert sum(len(r.detail["decisions"]) for r in run.audit("features.written")) == len(facts)
    assert broken_links(run.of(AuditRecord)) == []


class _BrokenStore(MemoryStore):
    """A store that is away, until it is mended."""

    is_mended = False

    def latest(self, view: str, keys: Sequence[str]) -> dict[str, Any]:
        if not self.is_mended:
            raise OSError("no store")
        return super().latest(view, keys)

    def write(self, rows: Sequence[FeatureRow]) -> int:
        if not self.is_mended:
            raise OSError("no store")
        return super().write(rows)


def test_what_a_broken_store_did_not_take_is_said_and_counted_when_it_is_mended(
    decision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_SECONDS", (0.0,))
    store = _BrokenStore()
    log = FeatureLog(store)  # type: ignore[arg-type] # a writer by its two methods
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
    store.is_mended = True
    later = run.read(decision(time=run.clock.now(), user_id="another"), 1)
    assert asyncio.run(log.record(later.facts, shared=False))
    users = {key: row.values for (view, key), row in store.rows.items() if view == "user"}
    assert {name: values["decisions"] for name, values in users.items()} == {
        made.user_id: 1,
        "another": 1,
    }


def test_what_a_broken_store_did_not_take_outlasts_a_handover_of_other_partitions(
    decision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_SECONDS", (0.0,))
    store, run = _BrokenStore(), Run()
    log = FeatureLog(store)  # type: ignore[arg-type] # a writer by its two methods
    (ours,) = run.read(decision(time=run.clock.now(), user_id="ours"), 0).facts
    theirs = msgspec.structs.replace(ours, partition=1, user_id="theirs")
    assert not asyncio.run(log.record([ours, theirs], shared=False))
    log.forget()  # revoked
    log.forget()  # and assigned
    log.keep({0})
    store.is_mended = True
    later = run.read(decision(time=run.clock.now(), user_id="another"), 1)
    assert asyncio.run(log.record(later.facts, shared=False))
    assert {key for view, key in store.rows if view == "user"} == {"ours", "another"}


def test_a_shadow_copy_is_judged_and_waits_for_nothing_and_teaches_nobody(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    unseen = Assignment(
        policy="assistant",
        policy_version="new",
        arm="shadow",
        probability=0.5,
        canary_weight=1 / 3,
        rollout_id="r",
    )
    copy = decision(assignment=unseen, answer="Card 4111 1111 1111 1111.")
    step = run.read(copy, 0)
    [safety] = run.of(Safety)
    assert (safety.assignment, safety.violation) == (unseen, True)
    assert step.facts == []  # nor does it count in the user's features
    assert run.flow.open_decisions == 0
    assert run.flow.partitions[0].decisions.offsets.committable == 1
    run.read(feedback(copy), 0)
    run.close()
    assert run.of(Reward) == run.of(Sample) == []
    assert len(run.audit("safety.judged")) == 1


def test_what_was_revised_while_partitions_changed_hands_is_left_to_who_reads_it_again(
    decision: Any, feedback: Any
) -> None:
    run = Run(reward={"rating": RewardComponent(weight=1.0, delay_seconds=10 * WINDOW)})
    made = decision(time=run.clock.now())
    run.read(made, offset=0)
    run.clock.advance(2 * WINDOW)
    run.read(decision(time=run.clock.now()), offset=1)  # keeps the session in memory
    run.close(after=0.0)
    said = encode(FEEDBACK, feedback(made, time=run.clock.now()), source="test")
    received = Received(FEEDBACK, 0, 0, said.key, said.value, said.headers)
    step = run.flow.read([received], run.clock.now())
    assert step.revised
    run.flow.assign([0])  # while the step is delivered
    run.flow.settle(step)
    assert step.facts == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rating", {"decision_id": "", "time": datetime(9998, 12, 31, tzinfo=UTC)}),
        ("retraction", {"retracts": "none", "time": ManualClock().now() + timedelta(days=6)}),
    ],
)
def test_feedback_that_says_it_is_of_the_future_makes_no_row_newer_than_the_present(
    decision: Any, feedback: Any, kind: str, said: dict[str, Any]
) -> None:
    clock, store, log = ManualClock(), MemoryStore(), Log()
    settings = Settings(streams=Streams(window_seconds=WINDOW, quarantine=UNPROVEN))
    worker = WorkerInMemory(settings, log, store, clock)
    made = decision(time=clock.now())
    log.append(made)
    log.append(feedback(made, kind, **said))
    worker.read_all()
    clock.advance(2 * WINDOW)
    worker.close()
    assert worker.of(Reward)
    assert max(row.event_time for row in store.rows.values()) <= clock.now()


def test_a_signal_of_another_package_that_fails_takes_no_feedback_with_it(
    decision: Any, feedback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weight = Run(), RewardComponent(weight=1.0)
    parts = {"polite": (weight, lambda *_: Signal(nan, "polite@3")), "rating": (weight, rating)}
    monkeypatch.setattr(run.flow._rewarder, "_rules", Rewarding(parts))
    made = decision(time=run.clock.now())
    run.read(made, 0)
    run.read(feedback(made, score=0.5), 0)
    run.close()
    (failed,) = run.audit("reward.failed")
    assert (failed.subject, failed.reason) == (made.id, "ValueError")
    (reward,) = run.of(Reward)
    assert (reward.status, reward.value) == ("final", 0.5)


def test_times_without_measure_leave_counts_that_can_be_read_again(decision: Any) -> None:
    run, memory = Run(), MemoryStore()
    facts = []
    for offset, seconds in enumerate((1.7e308, 1.7e308, -1.7e308)):
        made = decision(time=run.clock.now(), timings=Timings(total_seconds=seconds))
        facts += run.read(made, offset).facts
    memory.write(Tally(memory.latest).rows(facts))
    rows = Tally(memory.latest).rows(run.read(decision(time=run.clock.now()), 3).facts)
    (version,) = (row.values for row in rows if row.view == "policy_version")
    assert (version["decisions"], version["recent_seconds_mean"]) == (4, 2 * MAX_SECONDS / 4)
