"""The steps every chat request takes: assign, read features, ask the engine, log the decision.

`chat_endpoint` and `chat_stream` tell the story of a request in these steps. Nothing here knows of
HTTP or of Kafka.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Struct
from opentelemetry.trace import Span, SpanKind

from contracts.clock import Clock
from contracts.errors import EngineError
from contracts.events import Assignment, Rollout
from contracts.ids import NewId
from contracts.settings import Settings
from contracts.tracing import current_ids, current_trace_headers, span
from serving.assignment import assign
from serving.chat_request import ChatRequest
from serving.decision_log import DecisionLog
from serving.engine import Engine, EngineRequest
from serving.feature_lookup import FeatureLookup
from serving.metrics import Metrics
from serving.turn import (
    Outcome,
    Turn,
    candidates,
    decision_of,
    request_attributes,
    response_attributes,
)
from serving.wire_errors import Refusal

Answered = TypeVar("Answered")
_log = logging.getLogger("headrace.gateway")


class Gateway(Struct, frozen=True, kw_only=True):
    """The parts a request needs, made once per process. ``rollout`` gives the newest state."""

    settings: Settings
    secret: bytes
    clock: Clock
    new_id: NewId
    engine: Engine
    rollout: Callable[[], Rollout | None]
    features: FeatureLookup
    log: DecisionLog
    metrics: Metrics
    room: asyncio.Semaphore


@asynccontextmanager
async def place_for_one(gateway: Gateway) -> AsyncIterator[None]:
    """Hold one of the places for requests under way; Refusal 429 when all are taken."""
    if gateway.room.locked():
        raise Refusal(
            429,
            f"{gateway.settings.gateway.max_concurrent} requests are under way; try again soon",
            code="too_many_requests",
            retry_after=1,
        )
    async with gateway.room:
        yield


def begin_turn(gateway: Gateway, chat: ChatRequest, arrived: float, arrived_at: datetime) -> Turn:
    """Assign a version to the request and read its user's features as they are now."""
    session_id = chat.session_id or gateway.new_id()
    user_id = chat.user_id or session_id
    state = gateway.rollout()
    assignment = assign(state, gateway.settings.policy.name, user_id)
    started = gateway.clock.monotonic()
    features = gateway.features.read(user_id, session_id, assignment.policy_version, arrived_at)
    if features is None:
        gateway.metrics.count("features_missing")
    return Turn(
        decision_id=gateway.new_id(),
        session_id=session_id,
        user_id=user_id,
        chat=chat,
        candidates=candidates(assignment, state),
        features=features or {},
        features_seconds=gateway.clock.monotonic() - started,
        arrived=arrived,
        arrived_at=arrived_at,
    )


def turn_span(
    gateway: Gateway, turn: Turn, parent: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """Return the server span of a turn; ``parent`` are the client's trace headers."""
    return span(
        f"chat {gateway.settings.policy.name}",
        parent=parent,
        kind=SpanKind.SERVER,
        attributes=request_attributes(turn, gateway.settings),
    )


def engine_request(turn: Turn, assignment: Assignment) -> EngineRequest:
    """Return what the engine is asked on behalf of one candidate version."""
    return EngineRequest(
        model=assignment.policy_version,
        messages=turn.chat.engine_messages(),
        tools=list(turn.chat.tools),
        sampling=turn.chat.sampling,
        trace=current_trace_headers(),
    )


async def first_that_answers(
    gateway: Gateway, turn: Turn, ask: Callable[[EngineRequest], Awaitable[Answered]]
) -> tuple[Assignment, Answered, str]:
    """Ask for the candidates' answers in order; return (who answered, the answer, why not others).

    Every candidate but the last has half of the time that is left. A request that the engine calls
    invalid is refused at once: another version would refuse it too. Raises Refusal 503 when none
    answers.
    """
    deadline = gateway.clock.monotonic() + gateway.settings.engine.timeout_seconds
    notes: list[str] = []
    for assignment in turn.candidates:
        version = assignment.policy_version[:12]
        left = deadline - gateway.clock.monotonic()
        seconds = left if assignment is turn.candidates[-1] else left / 2
        try:
            async with asyncio.timeout(seconds):
                answer = await ask(engine_request(turn, assignment))
        except EngineError as error:
            if error.status == 400:
                raise Refusal(400, str(error), code="engine_refused") from error
            notes.append(f"{assignment.arm}: {version}: {reason_to_keep(gateway, error)}")
            _log.warning("%s gives no answer: %s", version, reason_without_content(error))
        except TimeoutError:
            notes.append(f"{assignment.arm}: {version}: no answer in {seconds:.3g} s")
            _log.warning("%s gives no answer in %.3g s", version, seconds)
        else:
            if notes:
                gateway.metrics.count("fallbacks")
            return assignment, answer, "; ".join(notes)
    gateway.metrics.count("failed")
    raise Refusal(
        503,
        "the engine gives no answer; try again soon",
        code="engine_unavailable",
        retry_after=1,
    ) from EngineError("; ".join(notes))


def reason_to_keep(gateway: Gateway, error: EngineError) -> str:
    """Return what went wrong for the decision and its audit record, as `tracing.content` allows."""
    return str(error) if gateway.settings.tracing.content else reason_without_content(error)


def reason_without_content(error: EngineError) -> str:
    """Return what went wrong for the log; an engine's own message may quote the conversation."""
    return f"the engine answered with status {error.status}" if error.status else str(error)


def end_turn(gateway: Gateway, turn: Turn, outcome: Outcome, current: Span) -> Outcome:
    """Log the decision, count it and describe it on the span; return the outcome with its time."""
    seconds = gateway.clock.monotonic() - turn.arrived
    outcome = msgspec.structs.replace(outcome, total_seconds=seconds)
    engine = gateway.settings.engine.kind
    gateway.log.decision(decision_of(turn, outcome, engine, current_ids()[0]))
    gateway.metrics.answered(outcome.assignment.arm, outcome.assignment.policy_version)
    gateway.metrics.total_seconds.observe(seconds)
    if outcome.answer.first_token_seconds is not None:
        gateway.metrics.first_token_seconds.observe(outcome.answer.first_token_seconds)
    current.set_attributes(response_attributes(turn, outcome))
    if gateway.settings.tracing.content:
        current.set_attribute("gen_ai.input.messages", json.dumps(turn.chat.engine_messages()))
        current.set_attribute("gen_ai.output.messages", outcome.answer.text)
    return outcome
