"""``POST /v1/chat/completions`` from request to response; streams go on in `chat_stream`."""

from __future__ import annotations

from typing import Any

import msgspec
from opentelemetry.trace import Span
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contracts.codec import to_json
from serving.body import read_body
from serving.budget import BUDGET_HEADER, budget_of
from serving.chat_request import parse_chat
from serving.chat_stream import stream_answer
from serving.gateway import Arrival, Gateway, begin_turn, end_turn, place_for_one, turn_span
from serving.ladder import first_that_answers
from serving.turn import Outcome, Turn, finished, headrace_of, usage_of
from serving.wire_errors import DECISION_HEADER, JSON, RUNG_HEADER, Refusal

TRACE_HEADERS = ("traceparent", "tracestate")


class ChatEndpoint:
    """The ASGI application of the route."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, within one of the places for requests under way."""
        try:
            async with place_for_one(self._gateway):
                await self._answer(scope, receive, send)
        except Refusal as refusal:
            if refusal.status < 500:
                self._gateway.metrics.count("refused")
            await refusal.response()(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, request = self._gateway, Request(scope, receive)
        arrival = Arrival(
            gateway.clock.monotonic(),
            gateway.clock.now(),
            budget_of(request.headers.get(BUDGET_HEADER), gateway.settings.engine.timeout_seconds),
        )
        body = await read_body(request, gateway.settings.gateway.max_body_bytes)
        asked = parse_chat(body, gateway.settings.gateway, gateway.settings.policy.name)
        gateway.metrics.count("requests")
        turn = begin_turn(gateway, asked, arrival)
        parent = {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
        with turn_span(gateway, turn, parent) as current:
            try:
                if asked.stream:
                    await stream_answer(gateway, turn, current, receive, send)
                else:
                    response = await plain_answer(gateway, turn, current)
                    await response(scope, receive, send)
            except Refusal as refusal:
                current.set_attribute("error.type", str(refusal.status))
                raise


async def plain_answer(gateway: Gateway, turn: Turn, current: Span) -> Response:
    """Ask the engine for the whole answer, log the decision, return the response."""
    step, answer, notes = await first_that_answers(
        gateway, turn, lambda answerer, request: answerer.complete(request)
    )
    outcome = end_turn(gateway, turn, finished(turn, step, answer, notes), current)
    return Response(
        to_json(_completion(gateway, turn, outcome)),
        headers={DECISION_HEADER: turn.decision_id, RUNG_HEADER: outcome.rung},
        media_type=JSON,
    )


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
