"""A real worker process on a real broker: what goes in, and what comes out, to the last event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from contracts.audit import broken_links
from contracts.broker import read_to_end
from contracts.codec import MAX_VALUE_BYTES, Record, encode, to_json, trace_headers
from contracts.events import (
    AuditRecord,
    DeadLetter,
    Decision,
    Event,
    Feedback,
    Reward,
    Safety,
    Sample,
    Sampling,
)
from contracts.settings import Streams
from contracts.topics import AUDIT, DEAD_LETTERS, DECISIONS, FEEDBACK, REWARDS, SAMPLES, Topic
from tests.messages import says

TRACE = "0af7651916cd43dd8448eb211c80319c"

WINDOW_SECONDS = 3.0


class Story:
    """All that was sent in one run and all that came back."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.decisions: list[Decision] = []
        self.expected: dict[str, float | None] = {}
        self.refused: dict[tuple[str, int, int], str] = {}
        self.received: dict[Topic, list[tuple[Any, Any]]] = {}

    def tell(
        self, decision: Decision, value: float | None, *feedback: Feedback, copies: int = 1
    ) -> None:
        self.decisions.append(decision)
        self.expected[decision.id] = value
        self.worker.send(*[decision] * copies, *list(feedback) * copies)

    def refuse(self, topic: Topic, value: bytes | None, ce_type: str, reason: str) -> None:
        record = Record(topic, b"key", value, [("ce_type", ce_type.encode())])  # type: ignore[arg-type] # an empty value is one of the cases
        partition, offset = self.worker.send_record(record)
        self.refused[topic.full_name(self.worker.settings.kafka.prefix), partition, offset] = reason

    def collect(self) -> None:
        for topic in (REWARDS, SAMPLES, DEAD_LETTERS, AUDIT):
            records = list(read_to_end(self.worker.settings.kafka, (topic,), "test"))
            self.received[topic] = [(record, record.event()) for record in records]

    def of(self, topic: Topic, kind: type[Event]) -> list[Any]:
        return [event for _, event in self.received[topic] if isinstance(event, kind)]


@pytest.fixture(scope="module")
def story(streams: Any, decision: Any, feedback: Any) -> Iterator[Story]:
    told = Streams().reward
    del told["re-ask"]  # the same question comes often in a session
    worker = streams(window_seconds=WINDOW_SECONDS, reward=told)
    worker.start()
    story = Story(worker)
    _tell_early_feedback(story, decision, feedback)
    for number in range(24):
        made = decision(session_id=f"session-{number}", user_id=f"user-{number % 3}")
        score = number / 12 - 1
        copies = 2 if number < 8 else 1
        story.tell(made, score, feedback(made, score=score), copies=copies)
    _tell_signals(story, decision, feedback)
    _tell_bad_records(story, decision)
    expected = {"rewards": len(story.decisions), "dead_letters": len(story.refused)}
    worker.until(
        "the story", lambda: all(worker.count(name) >= number for name, number in expected.items())
    )
    worker.until("the late feedback", lambda: worker.count("set_aside") >= 1)
    assert worker.stop() == 0
    story.collect()
    yield story


def _tell_early_feedback(story: Story, decision: Any, feedback: Any) -> None:
    early = decision(session_id="early")
    story.worker.send(feedback(early, score=0.25))
    story.worker.until("feedback before its decision", lambda: story.worker.count("feedback") == 1)
    story.tell(early, 0.25)


def _tell_signals(story: Story, decision: Any, feedback: Any) -> None:
    plain = decision()
    story.tell(plain, None)
    leak = decision(answer="Write to jane.doe@example.com")
    story.tell(leak, 0.0, feedback(leak, score=1.0))
    mixed = decision(answer="one two three four")
    wanted = says("one two")
    story.tell(
        mixed,
        0.5 * (2 * (2 / 3) - 1) + 0.6 * 0.0 + 0.6 * 1.0,
        feedback(mixed, "correction", correction=wanted),
        feedback(mixed, "outcome", score=0.0, name="tool"),
        feedback(mixed, "outcome", score=1.0, name="ticket"),
    )
    reported = decision()
    story.tell(reported, -1.0, feedback(reported, "report"), feedback(reported, score=-1.0))
    late = decision()
    story.tell(late, None, feedback(late, time=late.time + timedelta(seconds=WINDOW_SECONDS + 1)))
    nucleus = decision(sampling=Sampling(top_p=0.9), session_id="nucleus")
    story.tell(nucleus, 1.0, feedback(nucleus))
    untokened = decision(token_ids=(), logprobs=(), session_id="untokened")
    story.tell(untokened, 1.0, feedback(untokened))
    traced = decision(session_id="traced")
    story.decisions.append(traced)
    story.expected[traced.id] = 1.0
    trace = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    story.worker.send(traced, trace=trace)
    story.worker.send(feedback(traced))


def _tell_bad_records(story: Story, decision: Any) -> None:
    good = encode(DECISIONS, decision(), source="test").value
    story.refuse(DECISIONS, b"{", "headrace.decision.v1", "malformed")
    story.refuse(FEEDBACK, b"\xff\xfe", "headrace.feedback.v1", "malformed")
    story.refuse(FEEDBACK, None, "headrace.feedback.v1", "malformed")
    padding = b'{"text": "' + b"x" * MAX_VALUE_BYTES + b'"}'
    story.refuse(DECISIONS, padding, "headrace.decision.v1", "oversized")
    story.refuse(DECISIONS, good, "headrace.reward.v1", "unknown-type")
    story.refuse(DECISIONS, good, "headrace.decision.v99", "unknown-version")
    story.refuse(FEEDBACK, good, "headrace.feedback.v1", "invalid")
    story.refuse(FEEDBACK, to_json({"id": "1"}), "headrace.feedback.v1", "invalid")


def test_every_decision_gets_one_reward_with_the_exact_value(story: Story) -> None:
    rewards = {event.decision_id: event for event in story.of(REWARDS, Reward)}
    assert len(story.of(REWARDS, Reward)) == len(rewards) == len(story.decisions)
    for decision_id, value in story.expected.items():
        assert rewards[decision_id].value == (value if value is None else pytest.approx(value))
        assert rewards[decision_id].revision == 0
        assert rewards[decision_id].status == ("censored" if value is None else "final")


def test_components_sum_to_the_value_and_name_their_events(story: Story) -> None:
    for reward in story.of(REWARDS, Reward):
        total = sum(part.value * part.weight for part in reward.components)
        assert reward.value is None or reward.value == pytest.approx(max(-1.0, min(1.0, total)))
        assert all(part.event_ids for part in reward.components)


def test_every_decision_gets_one_safety_event(story: Story) -> None:
    safety = story.of(REWARDS, Safety)
    assert Counter(event.decision_id for event in safety) == Counter(story.expected.keys())
    assert [event.findings[0].rule for event in safety if event.violation] == ["e-mail"]


def test_samples_are_the_final_rewards_with_tokens(story: Story) -> None:
    samples = {event.decision_id: event for event in story.of(SAMPLES, Sample)}
    wanted = {d.id: d for d in story.decisions if story.expected[d.id] is not None and d.token_ids}
    assert samples.keys() == wanted.keys()
    assert len(samples) == len(story.of(SAMPLES, Sample))
    for decision_id, sample in samples.items():
        usable = wanted[decision_id].sampling.top_p == 1.0
        assert sample.logprobs == (wanted[decision_id].logprobs if usable else ())
        assert sample.reward == pytest.approx(story.expected[decision_id])


def test_a_record_that_is_no_event_ends_in_dead_letters_with_its_place(story: Story) -> None:
    letters: list[DeadLetter] = story.of(DEAD_LETTERS, DeadLetter)
    found = {(event.topic, event.partition, event.offset): event.reason for event in letters}
    assert found == story.refused
    (oversized,) = [event for event in letters if event.reason == "oversized"]
    assert oversized.value_bytes > MAX_VALUE_BYTES
    assert len(oversized.value_base64) < MAX_VALUE_BYTES


def test_the_audit_has_every_step_of_every_record_in_one_chain(story: Story) -> None:
    records: list[AuditRecord] = story.of(AUDIT, AuditRecord)
    steps = Counter((record.action, record.subject) for record in records)
    decisions = {made.id for made in story.decisions}
    for action in ("decision.admitted", "safety.judged", "reward.closed"):
        assert {subject: n for (found, subject), n in steps.items() if found == action} == (
            dict.fromkeys(decisions, 1)
        )
    actions = Counter(record.action for record in records)
    assert actions["dead-letter"] == len(story.refused)
    assert actions["feedback.dropped"] == 1
    assert broken_links(sorted(records, key=lambda record: record.sequence)) == []


def test_the_audit_names_all_feedback_that_joined_and_the_features_written(story: Story) -> None:
    records: list[AuditRecord] = story.of(AUDIT, AuditRecord)
    joined = [r.detail["feedback_id"] for r in records if r.action == "feedback.joined"]
    counted = [i for r in records if r.action == "reward.closed" for i in r.detail["feedback"]]
    assert sorted(joined) == sorted(counted)
    written = [r.detail["decisions"] for r in records if r.action == "features.written"]
    assert {one for ids in written for one in ids} == {made.id for made in story.decisions}


def test_one_trace_runs_from_the_decision_to_its_sample(story: Story) -> None:
    (traced,) = [made for made in story.decisions if made.session_id == "traced"]
    for topic, kind in ((REWARDS, Safety), (REWARDS, Reward), (SAMPLES, Sample)):
        (headers,) = [
            trace_headers(record.headers)
            for record, event in story.received[topic]
            if isinstance(event, kind) and event.decision_id == traced.id
        ]
        assert headers["traceparent"].split("-")[1] == TRACE


def test_after_a_clean_stop_all_is_committed_and_the_group_is_empty(story: Story) -> None:
    kafka = story.worker.settings.kafka
    group = f"{kafka.prefix}streams"
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    committed = admin.list_group_offsets(group)[group]
    assert admin.describe_groups([group])[group]["members"] == []
    admin.close()
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    places = [
        TopicPartition(topic.full_name(kafka.prefix), number)
        for topic in (DECISIONS, FEEDBACK)
        for number in range(kafka.partitions)
    ]
    ends = consumer.end_offsets(places)
    consumer.close()
    assert {place: committed[place].offset for place in places if ends[place]} == {
        place: end for place, end in ends.items() if end
    }


def test_spans_of_every_step_are_in_the_trace_of_the_request(story: Story) -> None:
    lines = (
        (story.worker.settings.state_dir / "spans" / "streams-1.jsonl").read_bytes().splitlines()
    )
    spans = [msgspec.json.decode(line) for line in lines]
    traced = Counter(s["name"] for s in spans if s["context"]["trace_id"] == f"0x{TRACE}")
    assert traced == {"admit": 1, "judge safety": 1, "join": 1, "reward": 1}
    linked = {
        link["context"]["trace_id"] for s in spans if s["name"] == "features" for link in s["links"]
    }
    assert f"0x{TRACE}" in linked
