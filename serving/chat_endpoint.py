"""``POST /v1/chat/completions`` from request to response; streams go on in `chat_stream`."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from opentelemetry.trace import Span
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contracts.codec import to_json
from serving.api_keys import KeyEntry
from serving.body import read_body
from serving.budget import BUDGET_HEADER, budget_of
from serving.chat_request import parse_chat
from serving.chat_stream import stream_answer
from serving.client_send import ClientSend, ClientStalledError
from serving.gateway import Arrival, Gateway, begin_turn, end_turn, place_for_one, turn_span
from serving.guard_model import asked_of_guard_model
from serving.guarding import check_drawn, reply_to_question
from serving.ladder import first_that_answers
from serving.shadow import Shadows
from serving.turn import Outcome, Turn, finished, headrace_of, replied, unasked, usage_of
from serving.wire_errors import DECISION_HEADER, JSON, RUNG_HEADER, Refusal

TRACE_HEADERS = ("traceparent", "tracestate")

_log = logging.getLogger("headrace.gateway")


class ChatEndpoint:
    """The ASGI application of the route."""

    def __init__(self, gateway: Gateway, shadows: Shadows) -> None:
        self._gateway = gateway
        self._shadows = shadows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, within one of the places for requests under way."""
        to_client = ClientSend(send, self._gateway.clock)
        try:
            async with place_for_one(self._gateway, self._gateway.chat_room):
                await self._answer(scope, receive, to_client)
        except Refusal as refusal:
            if refusal.status < 500:
                self._gateway.metrics.count("refused")
            await refusal.response()(scope, receive, send)
        except ClientStalledError:
            _log.warning("a client did not read its answer; its connection is dropped")

    async def _answer(self, scope: Scope, receive: Receive, send: ClientSend) -> None:
        gateway, request = self._gateway, Request(scope, receive)
        arrival = arrival_of(gateway, request)
        with gateway.door.admitted(arrival.caller, "chat"):
            body = await read_body(request, max_body(gateway, arrival.caller))
            asked = parse_chat(body, gateway.settings)
            with gateway.load.asking(arrival.budget, stream=asked.stream) as under_way:
                gateway.metrics.count("requests")
                turn = begin_turn(gateway, asked, arrival, under_way)
                parent = {n: request.headers[n] for n in TRACE_HEADERS if n in request.headers}
                with turn_span(gateway, turn, parent) as current:
                    await self._take_turn(turn, current, (scope, receive, send))

    async def _take_turn(
        self, turn: Turn, current: Span, wire: tuple[Scope, Receive, ClientSend]
    ) -> None:
        gateway, (scope, receive, send) = self._gateway, wire
        try:
            turn = await asked_of_guard_model(gateway, turn)
            if turn.chat.stream:
                await stream_answer(gateway, turn, current, receive, send)
            else:
                response = await plain_answer(gateway, turn, current)
                await response(scope, receive, send)
        except Refusal as refusal:
            current.set_attribute("error.type", str(refusal.status))
            raise
        except ClientStalledError:
            current.set_attribute("error.type", "client_stalled")
            raise
        if turn.question.action == "passed":
            self._shadows.offer(gateway, turn)


def arrival_of(gateway: Gateway, request: Request) -> Arrival:
    """Return when a request came, its budget and its caller; Refusal 400 or 401."""
    allowed = gateway.settings.engine.timeout_seconds
    return Arrival(
        gateway.clock.monotonic(),
        gateway.clock.now(),
        budget_of(request.headers.get(BUDGET_HEADER), allowed),
        gateway.door.identify(request.headers.get("authorization")),
    )


def max_body(gateway: Gateway, caller: KeyEntry | None) -> int:
    """Return the most bytes a caller's body may have: its key may only lower the settings'."""
    of_all, own = gateway.settings.gateway.max_body_bytes, caller.max_body if caller else 0
    return min(own, of_all) if own else of_all


async def plain_answer(gateway: Gateway, turn: Turn, current: Span) -> Response:
    """Ask the engine for the whole answer, log the decision, return the response."""
    outcome = end_turn(gateway, turn, await _outcome(gateway, turn), current)
    return Response(
        to_json(_completion(gateway, turn, outcome)),
        headers={DECISION_HEADER: turn.decision_id, RUNG_HEADER: outcome.rung},
        media_type=JSON,
    )


async def _outcome(gateway: Gateway, turn: Turn) -> Outcome:
    if turn.question.action != "passed":
        return unasked(turn, reply_to_question(gateway.guard, turn.question, turn.chat))
    step, answer, notes = await first_that_answers(
        gateway, turn, lambda answerer, request: answerer.complete(request)
    )
    outcome = finished(turn, step, answer, notes)
    return replied(outcome, check_drawn(gateway.guard, turn.question, turn.chat, outcome.message))


def _completion(gateway: Gateway, turn: Turn, outcome: Outcome) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": outcome.message.content}
    if outcome.message.tool_calls:
        message["tool_calls"] = msgspec.to_builtins(outcome.message.tool_calls)
    return {
        "id": f"chatcmpl-{turn.decision_id}",
        "object": "chat.completion",
        "created": int(turn.arrived_at.timestamp()),
        "model": gateway.settings.policy.name,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": outcome.finish_reason,
            }
        ],
        "usage": usage_of(outcome.answer),
        "headrace": headrace_of(turn, outcome, gateway.secret),
    }
