"""Shadow copies: asked after the user was answered, bounded, and logged as what nobody saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.events import Decision, Rollout
from contracts.ids import derived_id
from contracts.settings import Engine, Settings
from guard.rules import compile_rules
from serving.rollout_guardrails import charged_arm
from serving.shadow import QUEUED
from streams.safety import judge
from tests.serving.rollout_states import canary_state
from tests.serving.scripted_gateway import ScriptedGateway


def shadow_state(share: float) -> Rollout:
    return replace(canary_state(0.0), phase="shadow", shadow_share=share)


@asynccontextmanager
async def copying(gateway: ScriptedGateway) -> AsyncIterator[None]:
    """Ask the copies meanwhile."""
    task = asyncio.create_task(gateway.shadows.run(gateway.running.gateway))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def copies(gateway: ScriptedGateway, count: int) -> list[Decision]:
    """Return so many decisions of copies once they are there."""
    await _idle()
    found = of_arm(gateway, "shadow")
    assert len(found) == count
    return found


def of_arm(gateway: ScriptedGateway, arm: str) -> list[Decision]:
    return [one for one in gateway.decisions() if one.assignment.arm == arm]


Open = Callable[[float], ScriptedGateway]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    made: list[ScriptedGateway] = []

    def make(share: float) -> ScriptedGateway:
        made.append(ScriptedGateway(tmp_path, shadow_state(share)))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_candidate_answers_the_same_question_and_no_user_sees_it(
    opened: Open, stream: bool
) -> None:
    gateway = opened(1.0)
    async with copying(gateway):
        answer = await gateway.ask("u", stream=stream, metadata={"session_id": "s"})
        [copy] = await copies(gateway, 1)
    [served] = of_arm(gateway, "stable")
    assert "I am " in answer.text
    assert "new" not in answer.text
    assert copy.id == derived_id(served.id, "shadow")
    assert (copy.session_id, copy.user_id, copy.messages) == ("s", "u", served.messages)
    given = copy.assignment
    assert (given.policy_version, given.rollout_id, copy.rung) == ("new", "rollout-1", "shadow")
    assert (given.probability, given.canary_weight) == (1.0, 0.5)
    assert served.assignment.canary_weight == 0.5
    assert copy.text == "I am new."


async def test_a_share_of_the_requests_is_copied(opened: Open) -> None:
    gateway = opened(0.25)
    async with copying(gateway):
        for _ in range(120):
            await gateway.ask()
        await asyncio.sleep(0)
    count = gateway.running.gateway.metrics.counts["shadow_copies"]
    assert 10 <= count <= 55  # 30 expected; both bounds are over four standard deviations away


async def test_a_candidate_that_hangs_delays_nobody_and_the_queue_stays_bounded(
    opened: Open,
) -> None:
    gateway = opened(1.0)
    gateway.engine.faults = {"new": "hang"}
    async with copying(gateway):
        answers = [await gateway.ask() for _ in range(2)]
        await _idle()
        answers += [await gateway.ask() for _ in range(QUEUED + 8)]
    assert {answer.status_code for answer in answers} == {200}
    assert len(of_arm(gateway, "stable")) == QUEUED + 10
    assert gateway.running.gateway.metrics.counts["shadow_dropped"] == 8  # two are being asked
    assert of_arm(gateway, "shadow") == []


async def test_a_candidate_that_fails_leaves_a_decision_that_says_so(opened: Open) -> None:
    gateway = opened(1.0)
    gateway.engine.faults = {"new": "fail"}
    async with copying(gateway):
        await gateway.ask()
        [copy] = await copies(gateway, 1)
    assert copy.error == "shadow: new: the engine answered with status 500"
    assert (copy.finish_reason, copy.token_ids) == ("error", ())


@pytest.mark.parametrize(("tokens", "charged"), [(20, "shadow"), (21, None)])
async def test_time_that_a_copy_of_a_long_answer_took_is_not_charged(
    tmp_path: Path, tokens: int, charged: str | None
) -> None:
    gateway = ScriptedGateway(
        tmp_path, shadow_state(1.0), engine=Engine(timeout_seconds=0.1), max_tokens=20
    )
    gateway.engine.faults = {"new": "hang"}
    async with copying(gateway), asyncio.timeout(30.0):
        await gateway.ask(max_tokens=tokens)
        while not of_arm(gateway, "shadow"):
            await _idle(1)
    [copy] = of_arm(gateway, "shadow")
    found = judge(compile_rules(Settings()))(copy, ManualClock().now())
    assert charged_arm(found) == charged
    await gateway.close()


@pytest.mark.parametrize("change", ["canary", "another rollout"])
async def test_outside_its_shadow_phase_nothing_is_copied(
    opened: Open, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = opened(1.0)
    states = iter([shadow_state(1.0), _changed(change)])
    last = _changed(change)
    gateway.states = lambda _policy: next(states, last)
    async with copying(gateway):
        await gateway.ask()
        await _idle()
    assert of_arm(gateway, "shadow") == []


def _changed(change: str) -> Rollout:
    if change == "canary":
        return canary_state(0.25)
    return replace(shadow_state(1.0), rollout_id="rollout-2")


async def _idle(turns: int = 50) -> None:
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    for _ in range(turns):
        await wait(0)
