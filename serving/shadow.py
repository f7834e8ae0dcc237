"""Shadow copies: the candidate answers questions that users were already answered, unseen by them.

In phase "shadow" a share of the requests is copied into a bounded queue after the user's answer has
left; a few at a time are asked of the candidate. A full queue drops copies and no user ever waits.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec import Struct
from msgspec.structs import replace

from contracts.errors import EngineError
from contracts.events import Assignment
from contracts.ids import derived_id
from contracts.tracing import current_ids, current_trace_headers, span
from serving.assignment import assign_shadow, in_share
from serving.budget import Budget, is_charged
from serving.engine import EngineAnswer
from serving.engine_failure import TOO_LATE
from serving.gateway import (
    FAILED,
    Gateway,
    engine_request,
    reason_to_keep,
    reason_without_content,
)
from serving.rollout_guardrails import UNCHARGED
from serving.rungs import Step
from serving.turn import Turn, decision_of, finished

QUEUED = 64
AT_ONCE = 2

_log = logging.getLogger("headrace.gateway")


class Copy(Struct, frozen=True):
    """A question to ask again, on whose behalf, and the trace of the answer that was served."""

    turn: Turn
    assignment: Assignment
    trace: dict[str, str]


class Shadows:
    """The queue of copies of one gateway, and what asks them; for one event loop."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Copy] = asyncio.Queue(QUEUED)

    def offer(self, gateway: Gateway, turn: Turn) -> None:
        """Copy an answered request if its rollout is in the shadow phase and its share has it.

        The request's id decides, so that the share is one of requests, not of users.
        """
        state = gateway.rollout(turn.policy)
        if state is None or state.phase != "shadow" or state.candidate is None:
            return
        served = turn.steps[0].assignment
        if served.rollout_id != state.rollout_id or turn.question.action != "passed":
            return
        if not in_share(state.salt, turn.decision_id, state.shadow_share):
            return
        copy = Copy(turn, assign_shadow(state, turn.policy), current_trace_headers())
        try:
            self._queue.put_nowait(copy)
        except asyncio.QueueFull:
            gateway.metrics.count("shadow_dropped")

    async def run(self, gateway: Gateway) -> None:
        """Ask what is queued until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(gateway))

    async def _work(self, gateway: Gateway) -> None:
        while True:
            copy = await self._queue.get()
            try:
                await ask_copy(gateway, copy)
            except Exception:  # noqa: BLE001 - edge of the task: a fault of one copy must not end the others
                _log.exception("a shadow copy failed")


async def ask_copy(gateway: Gateway, copy: Copy) -> None:
    """Ask the candidate and log its decision, whose id follows from the served one's."""
    began = gateway.clock.monotonic()
    turn = replace(
        copy.turn,
        decision_id=derived_id(copy.turn.decision_id, "shadow"),
        arrived_at=gateway.clock.now(),
    )
    attributes = {"headrace.decision.id": turn.decision_id, "headrace.arm": "shadow"}
    with span(f"shadow {turn.policy}", links=[copy.trace], attributes=attributes):
        answer, notes = await _answer(gateway, turn, copy.assignment)
        outcome = finished(turn, Step("shadow", copy.assignment), answer, notes)
        outcome = replace(outcome, total_seconds=gateway.clock.monotonic() - began)
        engine = gateway.settings.engine.kind
        gateway.log.decision(decision_of(turn, outcome, engine, current_ids()[0]))
        gateway.metrics.count("shadow_copies")


async def _answer(gateway: Gateway, turn: Turn, assignment: Assignment) -> tuple[EngineAnswer, str]:
    """Return the candidate's answer, or an empty one and why there is none."""
    seconds, late = gateway.settings.engine.timeout_seconds, False
    try:
        async with asyncio.timeout(seconds):
            return await gateway.engine.complete(engine_request(turn, assignment)), ""
    except EngineError as error:
        why, late = reason_to_keep(gateway, error), error.status == TOO_LATE
        _log.warning("shadow copy: %s", reason_without_content(error))
    except TimeoutError:
        why, late = f"no answer in {seconds:.3g} s", True
    tokens = turn.chat.sampling.max_tokens
    charged = is_charged(gateway.settings.gateway, Budget(seconds), seconds, tokens)
    arm = f"{assignment.arm}{UNCHARGED if late and not charged else ''}"
    note = f"{arm}: {assignment.policy_version[:12]}: {why}"
    return EngineAnswer("", (), (), (), FAILED), note
