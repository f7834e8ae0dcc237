from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from console.main import main
from console.rollout_history import history_of
from console.rollout_versions import the_one
from contracts.audit import AuditChain
from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.events import (
    BASE_VERSION,
    Candidate,
    Evidence,
    GuardrailEvidence,
    Rollout,
    RolloutCommand,
)
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import ROLLOUT_COMMANDS, ROLLOUTS
from tests.serving.rollout_stage import Stage
from tests.topic_log import events, publish

Run = Callable[..., Result]
CANDIDATE = "c" * 64


@pytest.fixture
def headrace(kafka: Kafka, tmp_path: Path) -> Run:
    """Runs ``headrace rollout`` on this test's topics."""
    path = tmp_path / "headrace.yaml"
    address = {"bootstrap": kafka.bootstrap, "prefix": kafka.prefix}
    segments = [{"policy": "gold", "tier": "gold"}]
    path.write_text(
        json.dumps(
            {
                "state_dir": str(tmp_path),
                "kafka": address,
                "policy": {"name": "desk"},
                "segments": segments,
                "engine": {"max_adapters": 8},
            }
        )
    )

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--settings", str(path), "rollout", *arguments])

    return run


def state(clock: ManualClock, policy: str = "desk", **changes: Any) -> Rollout:
    base = Candidate(version=BASE_VERSION)
    changes = {"epoch": 1, "phase": "idle", "stable": base, **changes}
    return Rollout(id=f"state-{changes['epoch']}", time=clock.now(), policy=policy, **changes)


@pytest.fixture
def chain(clock: ManualClock, new_id: NewId) -> AuditChain:
    return AuditChain("rollout", clock, new_id)


@pytest.fixture
def stage(kafka: Kafka, tmp_path: Path, new_id: NewId) -> Stage:
    """A real controller's surroundings; its policy is "desk"."""
    return Stage(kafka, tmp_path, new_id)


def test_a_person_overrules_a_running_controller_and_each_word_is_in_the_history(
    headrace: Run, stage: Stage
) -> None:
    def overrule(*arguments: str) -> dict[str, Any]:
        answer = headrace(*arguments, "--operator", "ada", "--json")
        assert answer.exit_code == 0, answer.output
        told: dict[str, Any] = json.loads(answer.output)
        return told

    with stage.controller():
        version = stage.released()
        stage.state("canary", version)
        told = overrule("pause", "--reason", "an incident")
        assert (told["outcome"], told["action"]) == ("done", "rollout.paused")
        assert json.loads(headrace("show", "--json").output)["paused"]
        overrule("resume", "--reason", "it is over")
        told = overrule("promote", version[:8], "--reason", "it looks good")
        assert (told["action"], told["stable"]) == ("rollout.promoted", version)
        told = overrule("rollback", "--reason", "a complaint")
        assert (told["action"], told["stable"]) == ("rollout.rolled-back", "base")
        told = overrule("pin", version[:8], "--reason", "audit week")
        assert (told["action"], told["stable"]) == ("rollout.pinned", version)
        assert "PINNED" in headrace("show").output
        overrule("unpin", "--reason", "done")
        refused = headrace("resume", "--reason", "why not")
    assert refused.exit_code == 1
    assert "refused: resume: nothing is paused" in refused.output
    lines = json.loads(headrace("history", "--json").output)
    steps = [(line["action"], line["operator"]) for line in lines if line["operator"]]
    assert steps[:2] == [("asked to pause", "ada"), ("paused", "ada")]
    assert [action for action, _ in steps][-2:] == ["asked to resume", "command-refused"]
    assert len(steps) == 14
    assert "a complaint" in headrace("history").output


def test_a_rollback_to_the_version_in_service_ends_a_rollout_and_else_changes_nothing(
    headrace: Run, stage: Stage
) -> None:
    with stage.controller():
        stage.state("idle")
        assert headrace("rollback", "base", "--reason", "the end of a drill").exit_code == 1
        stage.state("canary", stage.released())
        answer = headrace("rollback", "base", "--reason", "the end of a drill")
        assert answer.exit_code == 0, answer.output
        state = stage.state("rolled-back")
    assert (state.stable.version, state.candidate) == ("base", None)


def test_a_controller_that_does_not_answer_is_told_and_exits_with_3(
    headrace: Run, kafka: Kafka, clock: ManualClock
) -> None:
    publish(kafka, ROLLOUTS, state(clock))
    answer = headrace("pause", "--reason", "incident", "--wait", "0.3")
    assert answer.exit_code == 3
    assert "no answer from the rollout controller" in answer.output
    assert len(events(kafka, ROLLOUT_COMMANDS, RolloutCommand)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pause",), "--reason"),
        (("pause", "--reason", "  "), "characters"),
        (("promote", "feed", "--reason", "x"), "no version begins with 'feed'"),
        (("show", "--policy", "silver"), "silver"),
        (("restart", "--reason", "x"), "No such command"),
    ],
)
def test_wrong_usage_sends_nothing_and_exits_with_2(
    headrace: Run, kafka: Kafka, arguments: tuple[str, ...], said: str
) -> None:
    answer = headrace(*arguments)
    assert answer.exit_code == 2
    assert said in answer.output
    assert events(kafka, ROLLOUT_COMMANDS, RolloutCommand) == []


def test_a_stopped_stack_takes_no_commands(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(json.dumps({"state_dir": str(tmp_path)}))
    arguments = ["--settings", str(path), "rollout", "pause", "--reason", "x"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 3
    assert "no stack runs" in answer.output


def test_a_version_is_named_by_any_prefix_that_is_unique() -> None:
    known = {"ab" * 32, "ac" * 32, BASE_VERSION}
    assert the_one(known, "ab") == "ab" * 32
    with pytest.raises(SettingsError, match="begins 2 versions"):
        the_one(known, "a")
    with pytest.raises(SettingsError, match="no version begins"):
        the_one(known, "9")


def test_show_tells_the_arms_of_the_policy_asked_for(
    headrace: Run, kafka: Kafka, clock: ManualClock
) -> None:
    other = replace(state(clock, "gold"), phase="idle")
    candidate = Candidate(version=CANDIDATE, sequence=1, location="/nowhere")
    evidence = Evidence(
        requests={"canary": 7, "stable": 140},
        step_requests=7,
        guardrails={"safety": GuardrailEvidence(events={"canary": 2}, e_value=31.0)},
    )
    canary = state(
        clock,
        phase="canary",
        candidate=candidate,
        rollout_id="rollout-1",
        step=2,
        weight=0.05,
        evidence=evidence,
    )
    publish(kafka, ROLLOUTS, canary, other)
    found = json.loads(headrace("show", "--json").output)
    assert (found["policy"], found["phase"], found["candidate"]) == ("desk", "canary", CANDIDATE)
    assert {row["arm"]: row["requests"] for row in found["arms"]} == {
        "shadow": 0,
        "canary": 7,
        "stable": 140,
    }
    assert [step["place"] for step in found["steps"]] == ["passed", "passed", "here", "", ""]
    safety = found["tests"][0]
    assert (safety["name"], safety["canary"], safety["e_value"]) == ("safety", 2, 31.0)
    assert safety["threshold"] == pytest.approx(250)
    assert any("7 of 1000 canary requests" in words for words in found["missing"])
    text = headrace("show").output
    assert "5.0% of the users" in text
    assert "not further yet: safety in doubt: e-value 31" in text
    assert "gold: idle" in headrace("show", "--policy", "gold").output


def test_history_tells_who_asked_why_and_what_was_done_in_order(
    clock: ManualClock, chain: AuditChain
) -> None:
    clock.advance(1)
    command = RolloutCommand(
        id="command-1",
        time=clock.now(),
        policy="desk",
        action="rollback",
        version=BASE_VERSION,
        reason="a complaint",
        operator="ada",
    )
    clock.advance(1)
    detail = {"command_id": "command-1"}
    done = chain.record("rollout.rolled-back", CANDIDATE, reason="as asked", detail=detail)
    of_others = chain.record("decision.made", "d-1")
    of_gold = chain.record("rollout.started", CANDIDATE, detail={"policy": "gold"})
    lines = history_of([done, of_others, of_gold, command], "desk")
    assert [line.action for line in lines] == ["asked to rollback", "rolled-back"]
    assert [line.operator for line in lines] == ["ada", "ada"]
