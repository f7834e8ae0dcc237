"""A controller that waits for a slow engine still shows that it lives and obeys people."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from contracts.audit import AuditChain
from contracts.clock import SystemClock
from contracts.errors import EngineError
from contracts.topics import ROLLOUT_COMMANDS
from serving.engine import EngineAnswer, EngineRequest
from serving.rollout_log import RolloutLog
from serving.weight_swap import Weights
from tests.serving.rollout_stage import RULES, Stage, TinyEngine
from tests.serving.test_rollout_commands import answer, ask, command
from tests.serving.test_rollout_controller import beat_note
from tests.until import until


class HeldEngine(TinyEngine):
    """An engine that answers, or refuses, once the test lets it."""

    held = True
    refuses = False

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        while self.held:  # noqa: ASYNC110 - set by the test, in another thread
            await asyncio.sleep(0.01)
        if self.refuses:
            raise EngineError("this version is none for it", 400)
        return await super().complete(request)


class SilentEngine(TinyEngine):
    """An engine that does not say whose weights it has once the test wants it silent."""

    silent = False
    ignored = 0

    async def weights(self) -> str:
        self.ignored += self.silent
        while self.silent:  # noqa: ASYNC110 - set by the test, in another thread
            await asyncio.sleep(0.01)
        return await super().weights()


class SlowSwap(TinyEngine):
    """An engine that replaces its weights once the test lets it; it notes swaps cut short."""

    held = False
    begun = 0
    cut = 0

    async def swap_weights(self, to: Weights, back: Weights) -> None:
        self.begun += 1
        try:
            while self.held:  # noqa: ASYNC110 - set by the test, in another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cut += 1
            raise
        await super().swap_weights(to, back)


def test_a_command_waits_for_full_weights_that_are_being_swapped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.rollout_loop.COMMAND_SECONDS", 0.0)
    stage.engine = engine = SlowSwap()
    stage.settings = replace(stage.settings, rollout=replace(RULES, takeover_seconds=0.6))
    with stage.controller():
        path, version = stage.version(form="full")
        stage.release(path, version, form="full")
        stage.state("refused", version)
        answer(stage, ask(stage, "promote", version))
        engine.held = True
        engine.restart()
        until("the weights are swapped again", lambda: engine.begun == 2)
        paused = ask(stage, "pause")
        before = len(stage.states())
        until("three signs of life", lambda: len(stage.states()) >= before + 3)
        engine.held = False
        assert answer(stage, paused).action == "rollout.paused"
    assert (engine.begun, engine.cut, engine.full) == (2, 0, version)


def test_a_command_does_not_wait_for_an_engine_that_hangs(stage: Stage) -> None:
    stage.engine = engine = SilentEngine()
    with stage.controller():
        version = stage.released()
        stage.state("canary", version)
        engine.silent = True
        until("the engine is asked in vain", lambda: engine.ignored)
        assert answer(stage, ask(stage, "rollback")).action == "rollout.rolled-back"
        stage.state("rolled-back", version)


def test_harm_does_not_wait_for_an_engine_that_hangs(stage: Stage) -> None:
    stage.engine = engine = SilentEngine()
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
        engine.silent = True
        until("the engine is asked in vain", lambda: engine.ignored)
        stage.serve(canary, range(100), bad_canary=True)
        assert stage.state("rolled-back", version).reason.startswith("safety: e-value")


def test_harm_does_not_wait_for_a_promotion_that_the_engine_is_slow_to_take(stage: Stage) -> None:
    stage.engine = engine = HeldEngine()
    engine.held = False
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
        engine.held = True
        promotion = ask(stage, "promote")
        loading = f"loading {version[:12]} for mara"
        until("the promotion is tried", lambda: loading in beat_note(stage))
        stage.serve(canary, range(100), bad_canary=True)
        assert stage.state("rolled-back", version).reason.startswith("safety: e-value")
        refused = answer(stage, promotion)
    assert (refused.action, refused.detail["command_id"]) == ("rollout.command-refused", promotion)
    assert "no rollout is under way" in refused.reason


def test_what_is_counted_while_the_engine_is_waited_for_is_in_the_state_after_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.rollout_loop.COMMAND_SECONDS", 0.0)
    stage.engine = engine = HeldEngine()
    engine.held = False
    stage.settings = replace(stage.settings, rollout=replace(RULES, takeover_seconds=0.6))
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
        engine.held, engine.refuses = True, True
        promotion = ask(stage, "promote")
        until("the promotion is tried", lambda: f"{version[:12]} for mara" in beat_note(stage))
        stage.serve(canary, range(10))
        until("10 are counted", lambda: stage.requests() == 10)
        engine.held = False
        assert answer(stage, promotion).action == "rollout.command-refused"
    after = next(found for found in stage.states() if found.last_command)
    assert sum(after.evidence.requests.values()) == 10


@pytest.mark.parametrize("away", [True, False], ids=["away", "slow"])
def test_a_rollback_does_not_wait_for_a_promotion_that_the_engine_does_not_take(
    stage: Stage, away: bool
) -> None:
    stage.engine = engine = HeldEngine()
    engine.held = False
    with stage.controller():
        first = stage.released()
        stage.state("canary", first)
        engine.up, engine.held = not away, True
        promotion = ask(stage, "promote", first)
        tried = "nothing listens there" if away else f"loading {first[:12]} for mara"
        until("the promotion is tried", lambda: tried in beat_note(stage))
        assert answer(stage, ask(stage, "rollback")).action == "rollout.rolled-back"
        refused = next(r for r in stage.audits() if r.detail.get("command_id") == promotion)
        assert refused.action == "rollout.command-refused"
        assert "before another command came; ask again" in refused.reason
        stage.state("rolled-back", first)
        engine.up, engine.held = True, False
        assert answer(stage, ask(stage, "promote", first)).action == "rollout.promoted"


def test_while_the_engine_is_waited_for_the_state_is_published_again(stage: Stage) -> None:
    stage.engine = engine = HeldEngine()
    stage.settings = replace(stage.settings, rollout=replace(RULES, takeover_seconds=0.6))
    with stage.controller():
        version = stage.released()
        until("the version is loaded", lambda: version in engine.loads)
        before = len(stage.states())
        until("three signs of life", lambda: len(stage.states()) >= before + 3)
        assert {state.phase for state in stage.states()} == {"idle"}
        engine.held = False
        state = stage.state("canary", version)
    assert {found.term for found in stage.states()} == {state.term}


def test_a_command_does_not_wait_for_a_release_that_the_engine_is_slow_to_take(
    stage: Stage,
) -> None:
    stage.engine = engine = HeldEngine()
    with stage.controller():
        version = stage.released()
        until("the version is loaded", lambda: version in engine.loads)
        pinned = answer(stage, ask(stage, "pin"))
        assert pinned.action == "rollout.pinned"
        assert engine.asked == []  # nobody let the engine go on
        engine.held = False
        answer(stage, ask(stage, "unpin"))
        stage.state("canary", version)
    assert [record.subject for record in stage.audits() if record.action == "rollout.started"] == [
        version
    ]


def test_no_release_is_looked_at_while_a_command_waits(stage: Stage) -> None:
    stage.engine = engine = HeldEngine()
    version = stage.released()
    asked = [ask(stage, "unpin"), ask(stage, "pause")]
    with stage.controller():
        found = [answer(stage, each).action for each in asked]
        assert found == ["rollout.command-refused", "rollout.paused"]
        assert engine.asked == []  # nobody let the engine go on
        engine.held = False
        answer(stage, ask(stage, "resume"))
        stage.state("canary", version)


def test_a_command_for_another_policy_is_none_to_wait_for(stage: Stage) -> None:
    log = RolloutLog(stage.kafka, "desk", AuditChain("rollout", SystemClock(), stage.new_id))
    log.open({})
    other = replace(command("pause", ident="other"), policy="other")
    stage.send(ROLLOUT_COMMANDS, other)
    assert [log.command_waits(), log.command_waits()] == [False, False]
    ask(stage, "pause")
    stage.send(ROLLOUT_COMMANDS, other)
    assert [log.command_waits(), log.command_waits()] == [True, True]
    until("all commands are read", lambda: log.poll(0.1) and log.caught_up())
    assert not log.command_waits()
    log.close()


def test_a_release_that_comes_with_the_command_takes_the_place_of_the_one_at_the_gate(
    stage: Stage,
) -> None:
    stage.engine = engine = HeldEngine()
    with stage.controller():
        first = stage.released()
        until("the version is loaded", lambda: first in engine.loads)
        second = stage.released()
        answer(stage, ask(stage, "pause"))
        engine.held = False
        answer(stage, ask(stage, "resume"))
        stage.state("canary", second)
    actions = [(record.action, record.subject) for record in stage.audits()]
    assert ("release.superseded", first) in actions
    assert ("rollout.started", first) not in actions
