"""``POST /v1/feedback``: feedback on a served decision or session, proven by the answer's token."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.responses import Response

from contracts.codec import to_json
from contracts.errors import CodecError
from contracts.events import Feedback, FeedbackKind, Id, Message, Score
from contracts.tokens import acceptance_mark, token_is_valid
from contracts.tracing import span
from serving.body import read_body
from serving.chat_endpoint import max_body
from serving.chat_request import WireMessage, checked_message, decode_body
from serving.gateway import Gateway, place_for_one
from serving.outbox import OutboxFullError
from serving.wire_errors import JSON, Refusal

SOURCE = "http"
MAX_DEPTH = 32
MAX_SECONDS = 1e9


class _Body(Struct, kw_only=True):
    session_id: Id
    decision_id: Annotated[str, Meta(max_length=128)] = ""
    kind: FeedbackKind
    token: Annotated[str, Meta(max_length=256)]
    user_id: Id | None = None
    score: Score | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    correction: WireMessage | None = None
    reason: Annotated[str, Meta(max_length=4000)] | None = None
    seconds: float | None = None
    retracts: Id | None = None


_bodies = msgspec.json.Decoder(_Body)


class FeedbackEndpoint:
    """Accepts feedback into the outbox: 202 with its event id."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def post(self, request: Request) -> Response:
        """Check and accept one feedback."""
        gateway = self._gateway
        try:
            async with place_for_one(gateway, gateway.feedback_room):
                feedback = await self._answer(request)
        except Refusal as refusal:
            gateway.metrics.count("feedback_refused")
            return refusal.response()
        gateway.metrics.count("feedback")
        return Response(to_json({"event_id": feedback.id}), 202, media_type=JSON)

    async def _answer(self, request: Request) -> Feedback:
        gateway = self._gateway
        caller = gateway.door.identify(request.headers.get("authorization"))
        with gateway.door.admitted(caller, "feedback"):
            body = await read_body(request, max_body(gateway, caller))
            feedback = self._checked(decode_body(_bodies, body))
            attributes = {
                "headrace.decision.id": feedback.decision_id,
                "headrace.feedback.kind": feedback.kind,
            }
            with span("feedback", kind=SpanKind.SERVER, attributes=attributes):
                self._accept(feedback)
        return feedback

    def _checked(self, body: _Body) -> Feedback:
        gateway = self._gateway
        user_id = body.user_id or body.session_id
        if not token_is_valid(
            gateway.secret, body.token, body.decision_id, body.session_id, user_id
        ):
            raise Refusal(
                403,
                "token does not belong to this decision, session and user; send the "
                "headrace.feedback_token that came with the answer, or, without decision_id, the "
                "headrace.session_token",
                param="token",
                code="invalid_token",
            )
        event_id = gateway.new_id()
        mark = acceptance_mark(gateway.secret, event_id, body.decision_id, body.session_id, user_id)
        try:
            return Feedback(
                id=event_id,
                time=gateway.clock.now(),
                decision_id=body.decision_id,
                session_id=body.session_id,
                user_id=user_id,
                kind=body.kind,
                score=body.score,
                name=body.name,
                correction=_correction(body.correction),
                reason=body.reason,
                seconds=_seconds(body.seconds),
                retracts=body.retracts,
                token=mark,  # not the token itself: readers of the topic must not come to hold it
                source=SOURCE,
            )
        except ValueError as error:
            raise Refusal(400, str(error)) from error

    def _accept(self, feedback: Feedback) -> None:
        try:
            self._gateway.log.feedback(feedback)
        except CodecError as error:
            raise Refusal(400, str(error)) from error
        except OutboxFullError as error:
            raise Refusal(
                503, "no room for feedback now; send it again later", retry_after=10
            ) from error


def _seconds(given: float | None) -> float | None:
    if given is not None and not 0.0 <= given <= MAX_SECONDS:
        raise Refusal(400, f"seconds is {given}; allowed: 0 to {MAX_SECONDS:g}", param="seconds")
    return given


def _correction(wire: WireMessage | None) -> Message | None:
    if wire is None:
        return None
    if wire.role != "assistant":
        raise Refusal(
            400,
            f"correction has role {wire.role!r}; give the assistant message you wanted",
            param="correction",
        )
    for place, call in enumerate(wire.tool_calls or ()):
        _check_arguments(
            call.function.arguments, f"correction.tool_calls[{place}].function.arguments"
        )
    return checked_message(wire, "correction")


def _check_arguments(text: str, param: str) -> None:
    """Refuse arguments that a chat template could not render, or that have no one meaning."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or _depth_is_over(found, MAX_DEPTH):
        raise Refusal(
            400,
            f"{param} is {text[:80]!r}; allowed: one JSON object as text, without NaN, infinities "
            f"and lone surrogates, nested at most {MAX_DEPTH} levels",
            param=param,
        )


def _depth_is_over(value: object, allowed: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not isinstance(inner, Iterable):
        return False
    return allowed == 0 or any(_depth_is_over(one, allowed - 1) for one in inner)
