"""People's commands: each is done once or refused with a reason, and audited with its operator."""

from __future__ import annotations

import signal

import pytest
from msgspec.structs import replace

from contracts.broker import Received, make_producer, send_and_wait
from contracts.codec import encode
from contracts.events import (
    BASE_VERSION,
    AuditRecord,
    Candidate,
    Rollout,
    RolloutAction,
    RolloutCommand,
)
from contracts.settings.rollout import Rollout as Rules
from contracts.topics import ROLLOUT_COMMANDS
from serving.assignment import assign
from serving.rollout_commands import Order, obeyed, order_of
from serving.rollout_inbox import Inbox
from tests.serving.rollout_stage import EngineServer, Stage, process
from tests.serving.rollout_states import canary_state
from tests.stream_events import NOON
from tests.until import until

OLDER, OLD, NEXT = (Candidate(version=name) for name in ("older", "old", "next"))
NEW = Candidate(version="new", sequence=1)
CANARY = replace(canary_state(0.1), history=(OLDER,), offered=(NEW,))
IDLE = replace(CANARY, phase="promoted", candidate=None, weight=0.0)


def command(action: RolloutAction, version: str = "", *, ident: str = "c1") -> RolloutCommand:
    return RolloutCommand(
        id=ident,
        time=NOON,
        policy="desk",
        action=action,
        version=version,
        reason="because",
        operator="mara",
    )


def test_promote_takes_the_candidate_the_waiting_release_or_a_known_version() -> None:
    assert order_of(command("promote"), CANARY, None) == Order(NEW)
    assert order_of(command("promote", "next"), CANARY, NEXT) == Order(NEXT)
    assert order_of(command("promote", "new"), IDLE, None) == Order(NEW)
    assert order_of(command("promote", "older"), IDLE, None) == Order(OLDER)


def test_rollback_ends_the_rollout_or_goes_back_and_the_base_can_always_be_gone_back_to() -> None:
    assert order_of(command("rollback"), CANARY, None) == Order()
    assert order_of(command("rollback"), IDLE, None) == Order(OLDER)
    base = Order(Candidate(version=BASE_VERSION))
    assert order_of(command("rollback", BASE_VERSION), IDLE, None) == base
    assert order_of(command("rollback"), replace(IDLE, history=()), None) == base


@pytest.mark.parametrize(
    ("action", "version", "changes", "why"),
    [
        ("promote", "", {}, "no rollout is under way; known are old, new, older, base"),
        ("promote", "x", {}, "version 'x' is not known; known are old, new, older, base"),
        ("promote", "old", {}, "old already serves everybody"),
        ("promote", "new", {"pinned": True}, "old is pinned; unpin it first"),
        ("rollback", "new", {}, "version 'new' is none that served before; these did: older, base"),
        ("rollback", "", {"stable": Candidate(version="base"), "history": ()}, "no version served"),
        ("pin", "x", {}, "version 'x' is not known"),
        ("unpin", "", {}, "nothing is pinned"),
        ("pause", "", {"paused": "mara: lunch"}, "already paused: mara: lunch"),
        ("resume", "", {}, "nothing is paused"),
    ],
)
def test_what_cannot_be_done_is_refused_and_says_what_can(
    action: RolloutAction, version: str, changes: dict[str, object], why: str
) -> None:
    order = order_of(command(action, version), replace(IDLE, **changes), None)
    assert order.target is None
    assert order.refusal.startswith(why)


def test_what_served_before_can_be_gone_back_to_and_what_was_gone_back_from_cannot() -> None:
    asked = command("promote", "new")
    forward = obeyed(asked, Order(NEW), CANARY, Rules(), NOON)
    assert (forward.phase, forward.stable, forward.candidate) == ("promoted", NEW, None)
    assert forward.history == (OLD, OLDER)
    back = obeyed(command("rollback"), Order(OLD), forward, Rules(), NOON)
    assert (back.phase, back.stable, back.history) == ("rolled-back", OLD, (OLDER,))
    assert back.cooldown_until is not None
    assert back.last_command is not None
    assert (back.last_command.action, back.last_command.operator) == ("rollback", "mara")


def ask(stage: Stage, action: RolloutAction, version: str = "", *, records: int = 1) -> str:
    """Send a command, in so many records, and return its id."""
    asked = replace(command(action, version, ident=stage.new_id()), policy="desk")
    producer = make_producer(stage.kafka, "test-operator")
    for _ in range(records):
        send_and_wait(producer, stage.kafka, encode(ROLLOUT_COMMANDS, asked, source="test"))
    producer.close()
    return asked.id


def answer(stage: Stage, ident: str) -> AuditRecord:
    """Wait for the audit of a command, and for a state that has read past it."""

    def found() -> AuditRecord | None:
        states = stage.states()
        last = states[-1].last_command if states else None
        records = [r for r in stage.audits() if r.detail.get("command_id") == ident]
        return records[0] if records and last and last.command_id == ident else None

    return until("an answer to the command", found)


def test_while_many_commands_wait_the_others_are_left_on_their_topic(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.rollout_inbox.MAX_COMMANDS", 2)
    waiting: list[int] = []
    put_command = Inbox.put_command

    def put(inbox: Inbox, record: Received, asked: RolloutCommand, state: Rollout) -> bool:
        kept = put_command(inbox, record, asked, state)
        waiting.append(inbox.waiting)
        return kept

    monkeypatch.setattr(Inbox, "put_command", put)
    pairs: tuple[RolloutAction, ...] = ("pin", "unpin") * 6
    asked = [ask(stage, action) for action in pairs]
    with stage.controller():
        answer(stage, asked[-1])
    records = [r for r in stage.audits() if r.detail.get("command_id") in asked]
    assert [record.detail["command_id"] for record in records] == asked
    assert [record.action for record in records] == ["rollout.pinned", "rollout.unpinned"] * 6
    assert max(waiting) == 2


def test_a_person_promotes_at_once_and_goes_back_to_the_version_before(stage: Stage) -> None:
    with stage.controller():
        first = stage.promote()
        second = stage.released()
        stage.state("canary", second)
        done = answer(stage, ask(stage, "promote"))
        assert (done.action, done.subject, done.reason) == ("rollout.promoted", second, "because")
        assert (done.detail["operator"], done.detail["gate"]) == ("mara", "never asked")
        assert stage.state("promoted", second).stable.version == second
        back = answer(stage, ask(stage, "rollback"))
        assert (back.action, back.subject) == ("rollout.rolled-back", first)
        state = stage.state("rolled-back", first)
    assert assign(state, "desk", "anyone").policy_version == first
    assert first in stage.engine.adapters


def test_a_pause_keeps_the_shares_and_harm_still_rolls_back(stage: Stage) -> None:
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
        answer(stage, ask(stage, "pause"))
        stage.serve(canary, range(80))
        until("80 are counted", lambda: stage.requests() == 80)
        held = stage.states()[-1]
        assert (held.phase, held.weight, held.paused) == ("canary", 0.5, "mara: because")
        stage.serve(canary, range(100, 160), bad_canary=True)
        assert stage.state("rolled-back", version).reason.startswith("safety: e-value")
        waiting = stage.released()
        answer(stage, ask(stage, "resume"))
        stage.state("canary", waiting)


def test_while_a_version_is_pinned_no_release_is_taken(stage: Stage) -> None:
    with stage.controller():
        stage.state("canary", stage.released())
        pinned = answer(stage, ask(stage, "pin"))
        assert pinned.action == "rollout.pinned"
        state = stage.states()[-1]
        assert (state.pinned, state.candidate, state.stable.version) == (True, None, BASE_VERSION)
        newest = stage.released()
        refused = answer(stage, ask(stage, "promote", newest))
        assert refused.action == "rollout.command-refused"
        assert "is pinned; unpin it first" in refused.reason
        answer(stage, ask(stage, "unpin"))
        stage.state("canary", newest)


def test_a_command_is_done_once_although_the_controller_is_killed(stage: Stage) -> None:
    asked = ask(stage, "pause")
    with EngineServer(stage.engine) as server:
        with process(stage, server.port) as child:
            answer(stage, asked)
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        resumed = ask(stage, "resume")
        with process(stage, server.port):
            assert answer(stage, resumed).action == "rollout.resumed"
            stage.state("canary", stage.released())
    done = [r.detail["command_id"] for r in stage.audits() if "command_id" in r.detail]
    assert sorted(done) == sorted([asked, resumed])


def test_a_command_that_comes_twice_is_done_once(stage: Stage) -> None:
    with stage.controller():
        _first, second, _third = (stage.promote() for _ in range(3))
        back = ask(stage, "rollback", records=2)
        answer(stage, ask(stage, "pause", records=2))
        answer(stage, ask(stage, "resume"))
    done = [(r.detail["command_id"], r.action) for r in stage.audits() if "command_id" in r.detail]
    assert [action for _, action in done] == [
        "rollout.rolled-back",
        "rollout.paused",
        "rollout.resumed",
    ]
    assert done[0][0] == back
    assert stage.states()[-1].stable.version == second


def test_a_way_back_needs_neither_learner_nor_the_files_of_what_failed(stage: Stage) -> None:
    with stage.controller():
        stage.promote()
        (stage.versions / "version-1" / "adapter_model.safetensors").unlink()
        back = answer(stage, ask(stage, "rollback"))
        assert (back.action, back.subject) == ("rollout.rolled-back", BASE_VERSION)
        forward = answer(stage, ask(stage, "promote", stage.states()[-1].offered[0].version))
        assert forward.action == "rollout.command-refused"
        assert "adapter_model.safetensors" in forward.reason


def test_full_weights_serve_only_when_a_person_promotes_them_and_can_be_taken_back(
    stage: Stage,
) -> None:
    with stage.controller():
        path, version = stage.version(form="full")
        stage.release(path, version, form="full")
        assert "a person serves them" in stage.state("refused", version).reason
        assert stage.engine.swaps == []
        record = answer(stage, ask(stage, "promote", version))
        assert record.detail["gate"] == "never asked"
        assert stage.state("promoted", version).stable.form == "full"
        assert stage.engine.full == version
        adapter = stage.released()
        assert "roll back first" in stage.state("refused", adapter).reason
        answer(stage, ask(stage, "rollback"))
        stage.state("rolled-back", BASE_VERSION)
        until("the base's own weights", lambda: stage.engine.full == "")
