from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from console.evidence import all_evidence
from console.explain import explain_decision
from console.explain_text import explanation_text
from console.local_broker import LocalBroker
from console.main import main
from console.traceability import traceability
from contracts.broker import create_topics
from contracts.errors import UnavailableError
from contracts.events import (
    Feedback,
    Message,
)
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from contracts.topics import FEEDBACK
from learner.directory import PARTIAL_PREFIX
from tests.console.story import Story, produce, tell, write_version


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


def test_what_a_later_version_put_right_is_told(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    settings = Settings(state_dir=state_dir)
    sample = explain_decision(kafka, settings, story.decision.id).samples[0]
    line = {"sample_id": sample.id, "decision_id": story.decision.id, "offset": 0}
    lines = [{**line, "coefficient": -0.25}, {**line, "coefficient": 0.0, "undone": True}]
    later = write_version(state_dir / "versions", 3, story.version, [], lines)
    found = explain_decision(kafka, settings, story.decision.id)
    assert len(found.learned) == 1
    assert [(one.version, one.sequence) for one in found.paid] == [(later, 3)] * 2
    text = explanation_text(found)
    beginning = f"put right in version {later[:12]} (number 3, not announced): coefficient "
    assert f"{beginning}-0.2500\n" in text
    assert f"{beginning}+0.0000, back where it was: the rest let go" in text


@pytest.mark.parametrize("name", ["ledger.jsonl", "manifest.json"])
def test_a_version_whose_files_are_damaged_hides_no_other_and_is_told(
    kafka: Kafka, state_dir: Path, story: Story, name: str
) -> None:
    torn = state_dir / "versions" / "assistant" / story.parent / name
    torn.write_bytes(b'{"sample_id":')
    settings = Settings(state_dir=state_dir)
    found = explain_decision(kafka, settings, story.decision.id)
    assert [one.version for one in found.learned] == [story.version]
    (damage,) = found.unread
    assert str(torn) in damage
    assert f"not known of a version: {torn}" in explanation_text(found)
    assert traceability(all_evidence(kafka, settings)).unread == (damage,)


def test_a_sample_is_not_learned_once_more_in_a_version_that_a_crash_left_unfinished(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    root = state_dir / "versions" / "assistant"
    shutil.copytree(root / story.version, root / f"{PARTIAL_PREFIX}7")
    found = explain_decision(kafka, Settings(state_dir=state_dir), story.decision.id)
    assert [one.version for one in found.learned] == [story.version]


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
