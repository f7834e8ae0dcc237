"""One decision and all that followed from it: events, versions and spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from contracts.audit import AuditChain
from contracts.broker import make_producer, send_and_wait
from contracts.clock import ManualClock
from contracts.codec import encode, to_json
from contracts.events import (
    Assignment,
    Candidate,
    Component,
    Decision,
    Event,
    FeatureValue,
    Feedback,
    Message,
    Release,
    Reward,
    Rollout,
    Safety,
    Sample,
    Sampling,
    Timings,
)
from contracts.findings import Finding
from contracts.ids import NewId, derived_id
from contracts.manifest import Manifest, OffsetRange, hash_files, write_manifest
from contracts.settings import Kafka
from contracts.topics import AUDIT, DECISIONS, FEEDBACK, RELEASES, REWARDS, ROLLOUTS, SAMPLES, Topic

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = START + timedelta(seconds=9)
WHO: dict[str, Any] = {"session_id": "s-1", "user_id": "u-1"}
USER = Message(role="user", content="where is order 12?")
ANSWER = Message(role="assistant", content="it left on Monday")


class Story(msgspec.Struct, frozen=True):
    """One decision and all that followed from it."""

    decision: Decision
    parent: str
    version: str
    events: tuple[tuple[Topic, Event], ...]


def write_version(
    versions: Path,
    sequence: int,
    parent: str,
    ledger: Sequence[Mapping[str, object]],
    payments: Sequence[Mapping[str, object]] = (),
) -> str:
    partial = versions / "assistant" / f"partial-{sequence}"
    partial.mkdir(parents=True)
    for name, lines in (("ledger", ledger), ("payments", payments)):
        if lines or name == "ledger":
            raw = b"".join(to_json(line) + b"\n" for line in lines)
            (partial / f"{name}.jsonl").write_bytes(raw)
    manifest = Manifest(
        policy="assistant",
        sequence=sequence,
        form="lora",
        base="tiny",
        parent=parent,
        as_of=START,
        newest_feedback_time=START,
        trained_on=(OffsetRange(topic="samples", partition=0, first=0, next=64),),
        samples=64,
        config={},
        code="test",
        files=hash_files(partial),
    )
    version = write_manifest(partial, manifest)
    partial.rename(partial.with_name(version))
    return version


def tell(versions: Path, new_id: NewId) -> Story:
    decision_id = new_id()
    parent = write_version(versions, 1, "base", [])
    sample_id = derived_id(decision_id, "sample", "0")
    line = {
        "sample_id": sample_id,
        "decision_id": decision_id,
        "outcome": "used",
        "offset": 0,
        "user_reward_mean": None,
    }
    version = write_version(versions, 2, parent, [line])
    assignment = Assignment(
        policy="assistant", policy_version=parent, arm="canary", probability=0.3, canary_weight=0.3
    )
    decision = a_decision(decision_id, assignment)
    audit = AuditChain("gateway", ManualClock(LATER), new_id)
    events: tuple[tuple[Topic, Event], ...] = (
        (DECISIONS, decision),
        *consequences(decision, new_id()),
        (AUDIT, audit.record("served", decision_id, reason="canary")),
        (AUDIT, audit.record("promoted", version)),
        *promotion(version, parent, new_id),
    )
    return Story(decision, parent, version, events)


def a_decision(decision_id: str, assignment: Assignment) -> Decision:
    return Decision(
        id=decision_id,
        time=START,
        assignment=assignment,
        messages=(USER,),
        answer=ANSWER,
        action="answer",
        text="it left on Monday",
        token_ids=(5, 6),
        logprobs=(-0.5, -0.25),
        sampling=Sampling(),
        finish_reason="stop",
        features={"user_reward_mean": FeatureValue(value=0.25, age_seconds=4.0)},
        timings=Timings(total_seconds=0.02),
        engine="test",
        trace_id="ab" * 16,
        **WHO,
    )


def consequences(decision: Decision, feedback_id: str) -> tuple[tuple[Topic, Event], ...]:
    """Return the feedback on a decision and what the streams make of both."""
    about: dict[str, Any] = {
        **WHO,
        "decision_id": decision.id,
        "assignment": decision.assignment,
        "decided_at": START,
    }
    feedback = Feedback(
        id=feedback_id, time=LATER, decision_id=decision.id, kind="rating", score=1.0, **WHO
    )
    finding = Finding(category="secret", rule="bearer-token", where="answer", score=0.4)
    safety = Safety(
        id=derived_id(decision.id, "safety", "0"),
        time=START,
        violation=False,
        risk=0.4,
        findings=(finding,),
        **about,
    )
    component = Component(
        name="rating", value=1.0, weight=0.8, rule="rating.v1", event_ids=(feedback_id,)
    )
    reward = Reward(
        id=derived_id(decision.id, "reward", "0"),
        time=LATER,
        status="final",
        value=0.8,
        components=(component,),
        **about,
    )
    return (
        (FEEDBACK, feedback),
        (REWARDS, safety),
        (REWARDS, reward),
        (SAMPLES, a_sample(about, reward)),
    )


def a_sample(about: dict[str, Any], reward: Reward) -> Sample:
    return Sample(
        id=derived_id(reward.decision_id, "sample", "0"),
        time=LATER,
        reward_id=reward.id,
        messages=(USER,),
        action="answer",
        prompt_token_ids=(1,),
        token_ids=(5, 6),
        logprobs=(-0.5, -0.25),
        temperature=1.0,
        reward=0.8,
        violation=False,
        feedback_time=LATER,
        **about,
    )


def promotion(version: str, parent: str, new_id: NewId) -> tuple[tuple[Topic, Event], ...]:
    """Return the announcement of a version and the rollout state that made it stable."""
    release = Release(
        id=new_id(),
        time=LATER,
        policy="assistant",
        version=version,
        sequence=2,
        parent=parent,
        location="x",
        newest_feedback_time=LATER,
    )
    rollout = Rollout(
        id=new_id(),
        time=LATER,
        policy="assistant",
        epoch=3,
        phase="promoted",
        stable=Candidate(version=version, sequence=2, location="x"),
        candidate=Candidate(version=version, sequence=2, location="x"),
    )
    return (RELEASES, release), (ROLLOUTS, rollout)


def write_spans(state_dir: Path, trace_id: str) -> None:
    (state_dir / "spans").mkdir(parents=True)
    span = {
        "name": "chat assistant",
        "context": {"trace_id": f"0x{trace_id}", "span_id": "0x0123456789abcdef"},
        "parent_id": None,
        "start_time": "2026-03-01T12:00:00.000000Z",
        "end_time": "2026-03-01T12:00:00.020000Z",
    }
    (state_dir / "spans" / "gateway.jsonl").write_bytes(to_json(span) + b"\n{half a line")


def produce(kafka: Kafka, events: tuple[tuple[Topic, Event], ...]) -> None:
    producer = make_producer(kafka, "test-story")
    for topic, event in events:
        send_and_wait(producer, kafka, encode(topic, event, source="test"))
    producer.close()
