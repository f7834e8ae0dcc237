from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from console.evidence import (
    Evidence,
    Learned,
    SpanLine,
    all_evidence,
    manifests,
    version_directories,
)
from console.explain import explain_decision, explanation
from console.explain_text import explanation_text
from console.local_broker import LocalBroker
from console.main import main
from console.traceability import SPANS, STEPS, is_traceable, traceability, traceability_text
from contracts.audit import AuditChain
from contracts.broker import create_topics, make_producer, send_and_wait
from contracts.clock import ManualClock
from contracts.codec import encode, to_json
from contracts.errors import UnavailableError
from contracts.events import (
    Assignment,
    AuditRecord,
    Candidate,
    Component,
    Decision,
    Event,
    FeatureValue,
    Feedback,
    Finding,
    Message,
    Release,
    Reward,
    Rollout,
    Safety,
    Sample,
    Sampling,
    Timings,
)
from contracts.ids import NewId, derived_id
from contracts.manifest import Manifest, OffsetRange, hash_files, write_manifest
from contracts.settings import Kafka, Settings
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


def write_version(versions: Path, sequence: int, parent: str, ledger: list[dict[str, str]]) -> str:
    partial = versions / "assistant" / f"partial-{sequence}"
    partial.mkdir(parents=True)
    (partial / "ledger.jsonl").write_bytes(b"".join(to_json(line) + b"\n" for line in ledger))
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
    line = {"sample_id": sample_id, "decision_id": decision_id, "outcome": "used"}
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


@pytest.fixture
def story(kafka: Kafka, state_dir: Path, new_id: NewId) -> Iterator[Story]:
    told = tell(state_dir / "versions", new_id)
    write_spans(state_dir, "ab" * 16)
    produce(kafka, (*told.events, *tell(state_dir.with_name("other"), new_id).events))
    yield told


def test_the_chain_goes_from_the_features_to_the_version_that_learned(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    found = explain_decision(kafka, Settings(state_dir=state_dir), story.decision.id)
    assert found.decision == story.decision
    assert found.action_probability == pytest.approx(0.472366, abs=1e-6)
    assert found.version.manifest is not None
    assert found.version.manifest.trained_on[0].next == 64
    assert found.lineage == ("base",)
    assert found.safety is not None
    assert found.safety.findings[0].rule == "bearer-token"
    assert [event.score for event in found.feedback] == [1.0]
    assert found.rewards[0].components[0].event_ids == (found.feedback[0].id,)
    assert [(one.version, one.sequence, one.phase) for one in found.learned] == [
        (story.version, 2, "promoted")
    ]
    assert [record.action for record in found.audit] == ["served", "promoted"]
    assert [(span.process, span.name) for span in found.spans] == [("gateway", "chat assistant")]


def test_what_users_wrote_cannot_steer_the_terminal(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    found = explain_decision(kafka, Settings(state_dir=state_dir), story.decision.id)
    hostile = "wi\x1b]0;owned\x07pe\x1b[2J \x9b1m\u202eit\nup"
    said = Message(role="user", content=hostile)
    decision = replace(
        found.decision, messages=(said,), text=hostile, user_id=hostile, error=hostile
    )
    text = explanation_text(replace(found, decision=decision))
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("it up") == 4


def test_the_text_names_every_link(kafka: Kafka, state_dir: Path, story: Story) -> None:
    text = explanation_text(
        explain_decision(kafka, Settings(state_dir=state_dir), story.decision.id)
    )
    for part in (
        "where is order 12?",
        "user_reward_mean = 0.25  (4.0 s old)",
        "probability of this answer 0.472",
        "samples/0 offsets 0 to 63",
        "secret in the answer: bearer-token",
        "rating: +1.00 x 0.8 = +0.800  by rating.v1",
        "score +1.00",
        f"read for version {story.version[:12]} (number 2, promoted): outcome used",
        "chat assistant  20.0 ms",
    ):
        assert part in text


def test_an_unknown_decision_is_said_to_be_unknown(kafka: Kafka, state_dir: Path) -> None:
    with pytest.raises(UnavailableError, match="no decision 'nobody' in the log"):
        explain_decision(kafka, Settings(state_dir=state_dir), "nobody")


def test_a_stopped_stack_still_explains_from_its_stored_log(
    state_dir: Path, new_id: NewId, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tell(state_dir / "versions", new_id)
    with LocalBroker(state_dir / "broker") as broker:
        create_topics(broker.kafka)
        produce(broker.kafka, told.events)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"state_dir: {state_dir}\n")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    answer = runner.invoke(main, ["--settings", str(settings), "explain", told.decision.id])
    assert answer.exit_code == 0, answer.output
    assert f"decision {told.decision.id}" in answer.output
    unknown = runner.invoke(main, ["--settings", str(settings), "explain", "nobody"])
    assert unknown.exit_code == 1
    assert "no decision 'nobody'" in unknown.output


def test_all_decisions_are_checked_and_what_lacks_is_named(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    evidence = all_evidence(kafka, Settings(state_dir=state_dir))
    assert explanation(evidence, story.decision.id) == explain_decision(
        kafka, Settings(state_dir=state_dir), story.decision.id
    )
    found = traceability(evidence)
    assert (found.decisions, found.explained, is_traceable(found)) == (2, 0, False)
    assert story.decision.id in found.lacking["audit of every step"]
    assert story.decision.id not in found.lacking["policy version"]
    assert found.lacking["safety features"] == found.lacking["reward"] == ()
    assert (found.samples, found.learned, found.audit_chains) == (2, 1, 2)
    assert f"{story.decision.id}" in traceability_text(found)


@pytest.fixture
def whole(state_dir: Path, new_id: NewId) -> Evidence:
    """All that there is on one decision of which nothing lacks."""
    told = tell(state_dir / "versions", new_id)
    chain = AuditChain("streams-1", ManualClock(LATER), new_id)
    steps = [chain.record(action, told.decision.id) for action in sorted(STEPS)]
    about = [event for _, event in told.events if not isinstance(event, AuditRecord)] + steps
    (sample,) = (event for event in about if isinstance(event, Sample))
    line = {"sample_id": sample.id, "outcome": "used"}
    learned = Learned(version=told.version, sequence=2, phase="promoted", outcome=line)
    names = [("gateway", "chat assistant"), ("learner", "learn")]
    names += [("streams-1", name) for name in SPANS]
    spans = [
        SpanLine(process=p, name=name, start="", seconds=0.1, span_id="1", parent_id=None)
        for p, name in names
    ]
    return Evidence(
        versions=manifests(version_directories(state_dir / "versions")),
        about={told.decision.id: about},
        offsets={sample.id: 63},
        learned={sample.id: [learned]},
        spans={"ab" * 16: spans},
    )


def without(evidence: Evidence, unwanted: Callable[[Event], bool]) -> Evidence:
    about = {
        key: [event for event in events if not unwanted(event)]
        for key, events in evidence.about.items()
    }
    return replace(evidence, about=about)


def test_a_decision_of_which_nothing_lacks_is_traceable(whole: Evidence) -> None:
    found = traceability(whole)
    assert is_traceable(found)
    assert (found.explained, found.traced, found.cut) == (1, 1, 0)
    assert set(found.lacking.values()) == {()}


@pytest.mark.parametrize(
    ("link", "harm"),
    [
        ("policy version", lambda e: replace(e, versions={})),
        ("safety features", lambda e: without(e, lambda event: isinstance(event, Safety))),
        ("reward", lambda e: without(e, lambda event: isinstance(event, Reward))),
        ("events behind the reward", lambda e: without(e, lambda x: isinstance(x, Feedback))),
        *(
            (
                "audit of every step",
                lambda e, step=step: without(e, lambda x: getattr(x, "action", "") == step),
            )
            for step in sorted(STEPS)
        ),
        ("version that learned it", lambda e: replace(e, learned={})),
    ],
)
def test_the_link_that_lacks_is_named(
    whole: Evidence, link: str, harm: Callable[[Evidence], Evidence]
) -> None:
    found = traceability(harm(whole))
    assert not is_traceable(found)
    assert {name for name, ids in found.lacking.items() if ids} == {link}


@pytest.mark.parametrize("lost", [*SPANS, "chat assistant", "learn"])
def test_a_lost_span_is_counted_and_breaks_nothing(whole: Evidence, lost: str) -> None:
    spans = {key: [s for s in lines if s.name != lost] for key, lines in whole.spans.items()}
    found = traceability(replace(whole, spans=spans))
    assert is_traceable(found)
    assert found.traced == 0


def test_a_sample_that_no_version_has_come_to_yet_lacks_nothing(whole: Evidence) -> None:
    newest = replace(whole, learned={}, offsets=dict.fromkeys(whole.offsets, 64), spans={})
    assert is_traceable(traceability(newest))


def test_an_empty_log_is_not_called_traceable() -> None:
    nothing = Evidence(versions={}, about={}, offsets={}, learned={}, spans={})
    assert not is_traceable(traceability(nothing))


def test_a_chain_with_a_changed_record_is_broken_one_without_its_head_is_cut(
    whole: Evidence,
) -> None:
    (decision_id,) = whole.about
    first, *others = (e for e in whole.about[decision_id] if isinstance(e, AuditRecord))
    changed = replace(whole, about={"x": [replace(first, reason="?"), *others]})
    assert traceability(changed).broken
    missing = replace(whole, about={"x": [first, *others[1:]]})
    assert traceability(missing).broken
    expired = traceability(replace(whole, about={"x": others}))
    assert (expired.broken, expired.cut) == ((), 1)


def test_feedback_with_the_id_of_its_decision_hides_nothing(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    own = next(event for _, event in story.events if isinstance(event, Feedback))
    same_id = replace(own, id=story.decision.id)
    produce(kafka, ((FEEDBACK, same_id),))
    found = explain_decision(kafka, Settings(state_dir=state_dir), story.decision.id)
    assert found.decision == story.decision
    assert {event.id for event in found.feedback} == {own.id, story.decision.id}


def test_the_command_wants_one_decision_or_all() -> None:
    for arguments in ([], ["some-id", "--all"]):
        answer = CliRunner().invoke(main, ["explain", *arguments])
        assert answer.exit_code == 2
        assert "give one DECISION_ID, or --all" in answer.output
