"""The steps every chat request takes: assign, read features, ask the engine, log the decision.

`chat_endpoint` and `chat_stream` tell the story of a request in these steps. Nothing here knows of
HTTP or of Kafka.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import datetime

import msgspec
from msgspec import Struct
from opentelemetry.trace import Span, SpanKind

from contracts.clock import Clock
from contracts.errors import EngineError
from contracts.events import Assignment, Message, Rollout
from contracts.ids import NewId
from contracts.settings import Settings
from contracts.tracing import current_ids, current_trace_headers, span
from serving.api_keys import KeyEntry
from serving.assignment import assign
from serving.breaker import Breakers
from serving.budget import Budget
from serving.chat_request import ChatRequest
from serving.decision_log import DecisionLog
from serving.engine import Engine, EngineRequest
from serving.engine_failure import failure_text
from serving.feature_lookup import FeatureLookup
from serving.guarding import Guard, check_asked
from serving.key_door import KeyDoor
from serving.metrics import Metrics
from serving.overload import Load
from serving.rungs import RuleReply, steps_of
from serving.segments import known_best, policy_for
from serving.turn import (
    Outcome,
    Turn,
    decision_of,
    request_attributes,
    response_attributes,
)
from serving.wire_errors import Refusal

DISCONNECTED = "disconnected"
"""Finish reason of a decision whose client left before the end."""
FAILED = "error"
"""Finish reason of a decision whose engine broke off after the first piece of text."""


class Gateway(Struct, frozen=True, kw_only=True):
    """The parts a request needs, made once per process.

    ``rollout`` gives the newest state known of a policy. The rooms hold the requests under way:
    chats may fill theirs and feedback is still taken.
    """

    settings: Settings
    secret: bytes
    clock: Clock
    new_id: NewId
    engine: Engine
    rollout: Callable[[str], Rollout | None]
    topic_of: Callable[[Sequence[Message]], str]
    features: FeatureLookup
    log: DecisionLog
    metrics: Metrics
    guard: Guard
    chat_room: asyncio.Semaphore
    feedback_room: asyncio.Semaphore
    load: Load
    door: KeyDoor
    breakers: Breakers
    rule: RuleReply


@asynccontextmanager
async def place_for_one(gateway: Gateway, room: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold one of a room's places for requests under way; Refusal 429 when all are taken."""
    if room.locked():
        raise Refusal(
            429,
            f"{gateway.settings.gateway.max_concurrent} requests are under way; try again soon",
            code="too_many_requests",
            retry_after=1,
        )
    async with room:
        yield


class Arrival(Struct, frozen=True):
    """When a request came, in clock seconds and in UTC, how long it may take, and by whose key."""

    at: float
    time: datetime
    budget: Budget
    caller: KeyEntry | None = None


def begin_turn(gateway: Gateway, chat: ChatRequest, arrival: Arrival, under_way: int) -> Turn:
    """Check the question, assign a version and read the user's features as they are now."""
    question = check_asked(gateway.guard, chat)
    session_id = chat.session_id or gateway.new_id()
    user_id = chat.user_id or session_id
    policy = _policy(gateway.settings, chat, arrival.caller)
    state = gateway.rollout(policy)
    assignment = assign(state, policy, user_id)
    started = gateway.clock.monotonic()
    topic = gateway.topic_of(chat.messages)
    version = assignment.policy_version
    features = gateway.features.read(user_id, session_id, version, arrival.time, topic)
    if features is None:
        gateway.metrics.count("features_missing")
    return Turn(
        decision_id=gateway.new_id(),
        session_id=session_id,
        user_id=user_id,
        chat=chat,
        question=question,
        policy=policy,
        budget=arrival.budget,
        steps=steps_of(assignment, state, with_rule=bool(gateway.settings.gateway.fallback_reply)),
        features=features or {},
        topic=topic,
        features_seconds=gateway.clock.monotonic() - started,
        arrived=arrival.at,
        arrived_at=arrival.time,
        asked=started,
        under_way=under_way,
        key=arrival.caller.name if arrival.caller else None,
    )


def _policy(settings: Settings, chat: ChatRequest, caller: KeyEntry | None) -> str:
    """Return the policy of the request's segment."""
    if not settings.segments:
        return settings.policy.name
    traits = known_best(caller.traits() if caller else None, chat.traits)
    return policy_for(settings.segments, settings.policy.name, traits)


def turn_span(
    gateway: Gateway, turn: Turn, parent: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """Return the server span of a turn; ``parent`` are the client's trace headers."""
    return span(
        f"chat {turn.policy}",
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


def reason_to_keep(gateway: Gateway, error: EngineError) -> str:
    """Return what went wrong for the decision and its audit record, as `tracing.content` allows."""
    return failure_text(error, content=gateway.settings.tracing.content)


def reason_without_content(error: EngineError) -> str:
    """Return what went wrong for the log; an engine's own message may quote the conversation."""
    return failure_text(error, content=False)


def end_turn(gateway: Gateway, turn: Turn, outcome: Outcome, current: Span) -> Outcome:
    """Log the decision, count it and describe it on the span; return the outcome with its time."""
    seconds = gateway.clock.monotonic() - turn.arrived
    outcome = msgspec.structs.replace(outcome, total_seconds=seconds)
    engine = gateway.settings.engine.kind
    gateway.log.decision(decision_of(turn, outcome, engine, current_ids()[0]))
    given = outcome.assignment
    gateway.metrics.answered(outcome.rung, given.arm, given.policy_version)
    _tell_breaker(gateway, outcome)
    gateway.metrics.total_seconds.observe(seconds)
    if outcome.guard is not None:
        gateway.metrics.guarded(outcome.guard)
    if outcome.answer.first_token_seconds is not None:
        gateway.metrics.first_token_seconds.observe(outcome.answer.first_token_seconds)
    current.set_attributes(response_attributes(turn, outcome))
    if gateway.settings.tracing.content:
        current.set_attribute("gen_ai.input.messages", json.dumps(turn.chat.engine_messages()))
        current.set_attribute("gen_ai.output.messages", outcome.answer.text)
    return outcome


def _tell_breaker(gateway: Gateway, outcome: Outcome) -> None:
    """Count a whole answer for its version and a broken one against it.

    A client that left or asked for too much says nothing about the version; a rule has no breaker.
    """
    version = outcome.assignment.policy_version
    if outcome.rung == "rule" or outcome.finish_reason == DISCONNECTED or not outcome.charged:
        return
    if outcome.finish_reason == FAILED:
        gateway.breakers.failed(version)
    else:
        gateway.breakers.succeeded(version)
