from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from console.main import main
from console.rollout_history import history_of
from console.rollout_versions import the_one
from contracts.audit import AuditChain
from contracts.broker import Reader
from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.events import BASE_VERSION, Candidate, Rollout, RolloutCommand
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import AUDIT, ROLLOUT_COMMANDS, ROLLOUTS
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
            }
        )
    )

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--settings", str(path), "rollout", *arguments])

    return run


@contextmanager
def controller(
    kafka: Kafka, chain: AuditChain, clock: ManualClock, action: str, reason: str = "as asked"
) -> Iterator[None]:
    """Answers the first command as `RolloutCommand` says that a controller does."""
    stop = Flag()
    reader = Reader(kafka, (ROLLOUT_COMMANDS,), "test-controller", from_end=True)

    def answer() -> None:
        while not stop.is_set():
            for record in reader.poll(0.1):
                command = record.event()
                assert isinstance(command, RolloutCommand)
                detail = {"command_id": command.id, "operator": command.operator}
                done = chain.record(action, CANDIDATE, reason=reason, detail=detail)
                publish(kafka, AUDIT, done)
                after = {"rollout-commands/0": record.offset + 1}
                publish(kafka, ROLLOUTS, replace(state(clock), epoch=3, positions=after))

    thread = Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        reader.close()


def state(clock: ManualClock, policy: str = "desk", **changes: Any) -> Rollout:
    base = Candidate(version=BASE_VERSION)
    changes = {"epoch": 1, "phase": "idle", "stable": base, **changes}
    return Rollout(id=f"state-{changes['epoch']}", time=clock.now(), policy=policy, **changes)


@pytest.fixture
def chain(clock: ManualClock, new_id: NewId) -> AuditChain:
    return AuditChain("rollout", clock, new_id)


def test_a_command_returns_once_the_controllers_state_shows_its_effect(
    headrace: Run, kafka: Kafka, chain: AuditChain, clock: ManualClock
) -> None:
    publish(kafka, ROLLOUTS, state(clock))
    with controller(kafka, chain, clock, "rollout.pinned"):
        answer = headrace("pin", "base", "--reason", "audit week", "--operator", "ada", "--json")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.output)
    assert (told["outcome"], told["action"]) == ("done", "rollout.pinned")
    [command] = events(kafka, ROLLOUT_COMMANDS, RolloutCommand)
    assert (command.action, command.version, command.policy) == ("pin", "base", "desk")
    assert (command.reason, command.operator) == ("audit week", "ada")


def test_a_command_that_the_controller_refuses_says_why_and_exits_with_1(
    headrace: Run, kafka: Kafka, chain: AuditChain, clock: ManualClock
) -> None:
    publish(kafka, ROLLOUTS, state(clock))
    with controller(kafka, chain, clock, "rollout.command-refused", "no canary is under way"):
        answer = headrace("promote", "--reason", "it looks good")
    assert answer.exit_code == 1
    assert "refused: no canary is under way" in answer.output


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
    canary = state(clock, phase="canary", candidate=candidate, weight=0.05)
    publish(kafka, ROLLOUTS, canary, other)
    found = json.loads(headrace("show", "--json").output)
    assert (found["policy"], found["phase"], found["candidate"]) == ("desk", "canary", CANDIDATE)
    assert {row["arm"] for row in found["arms"]} == {"canary", "stable"}
    assert found["missing"]
    text = headrace("show").output
    assert "5.0%" in text
    assert "not promoted yet" in text
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
