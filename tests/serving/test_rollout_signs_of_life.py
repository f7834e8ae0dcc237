"""A controller that waits for a slow engine still shows that it lives, so nobody takes over."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from serving.engine import EngineAnswer, EngineRequest
from tests.serving.rollout_stage import RULES, Stage, TinyEngine
from tests.until import until


class HeldEngine(TinyEngine):
    """An engine that answers once the test lets it."""

    held = True

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        while self.held:  # noqa: ASYNC110 - set by the test, in another thread
            await asyncio.sleep(0.01)
        return await super().complete(request)


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
