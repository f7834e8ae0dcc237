"""A streamed answer: engine chunks in, server-sent events in the OpenAI form out.

The whole stream runs in one task inside the request's span, so that the decision is logged in its
trace however the stream ends: finished, broken off by the engine, or left by the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct
from opentelemetry.trace import Span
from starlette.types import Receive, Send

from contracts.codec import to_json
from contracts.errors import EngineError
from serving.budget import Budget, is_charged
from serving.client_send import SEND_SECONDS, ClientSend, ClientStalledError
from serving.engine import EngineAnswer, EngineChunk, EngineRequest
from serving.engine_failure import TOO_LATE
from serving.gateway import (
    DISCONNECTED,
    FAILED,
    Gateway,
    end_turn,
    reason_to_keep,
    reason_without_content,
)
from serving.guarded_stream import GuardedStream, deltas_of, pieces_of
from serving.guarding import CONTENT_FILTER, reply_to_question
from serving.ladder import Answerer, first_that_answers
from serving.rollout_guardrails import UNCHARGED
from serving.rungs import Step
from serving.turn import Outcome, Turn, finish_reason, headrace_of, unasked, usage_of
from serving.wire_errors import DECISION_HEADER, RUNG_HEADER, ErrorBody, error_body

_log = logging.getLogger("headrace.gateway")


class OpenStream(Struct):
    """An engine stream whose first piece of text has come, with all chunks up to it."""

    first: list[EngineChunk]
    rest: AsyncGenerator[EngineChunk, None]


async def stream_answer(
    gateway: Gateway, turn: Turn, current: Span, receive: Receive, send: ClientSend
) -> None:
    """Stream one answer and log its decision; Refusal when no rung gives any text.

    ClientStalledError when the client does not take it in time: its decision says that it left.
    """
    if turn.question.action != "passed":
        async with _deadline(SEND_SECONDS):
            await _reply_at_once(gateway, turn, current, send)
        return
    step, stream, notes = await first_that_answers(gateway, turn, _opened)
    left = asyncio.create_task(_client_left(receive))
    answer = _Answer(gateway, turn, step, current, notes)
    try:
        async with _deadline(gateway.settings.engine.timeout_seconds + SEND_SECONDS):
            await _start(send, turn.decision_id, step.rung)
            await send(_part(answer.opening()))
            await _forward(stream, answer, send, left)
            outcome = answer.end()
            if not left.done():
                await _finish(answer, outcome, send)
    finally:
        answer.end()
        left.cancel()
        await stream.rest.aclose()


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """Bound a whole stream: the engine's time and a little more, however slowly a client reads."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ClientStalledError from error


async def _opened(answerer: Answerer, request: EngineRequest) -> OpenStream:
    """Read up to the first piece of text: until then another rung can answer instead."""
    rest = answerer.stream(request)
    first: list[EngineChunk] = []
    try:
        async for chunk in rest:
            first.append(chunk)
            if chunk.text or chunk.finish_reason is not None:
                return OpenStream(first, rest)
    except BaseException:
        await rest.aclose()
        raise
    raise EngineError("engine sent no text")


async def _reply_at_once(gateway: Gateway, turn: Turn, current: Span, send: Send) -> None:
    """Send what is answered to a question that no version is asked."""
    reply = reply_to_question(gateway.guard, turn.question, turn.chat)
    outcome = end_turn(gateway, turn, unasked(turn, reply), current)
    answer = _Answer(gateway, turn, Step(outcome.rung, outcome.assignment), current, "")
    await _start(send, turn.decision_id, outcome.rung)
    parts = [answer.opening(), *map(answer.chunk, deltas_of(pieces_of(outcome.message)))]
    for part in (*parts, *answer.closing(outcome)):
        await send(_part(part))
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _forward(
    stream: OpenStream, answer: _Answer, send: ClientSend, left: asyncio.Task[None]
) -> None:
    """Send what comes until it ends, the guard stops it, the engine fails or the client leaves."""
    try:
        async for chunk in _all(stream):
            if left.done():
                return
            for delta in answer.take(chunk):
                await send(_part(answer.chunk(delta)))
            if answer.stopped:
                return
    except EngineError as error:
        _log.warning("%s broke off: %s", answer.version, reason_without_content(error))
        answer.fail(error, send.waited)


async def _all(stream: OpenStream) -> AsyncGenerator[EngineChunk, None]:
    for chunk in stream.first:
        yield chunk
    async for chunk in stream.rest:
        yield chunk


async def _finish(answer: _Answer, outcome: Outcome, send: Send) -> None:
    for delta in answer.rest():
        await send(_part(answer.chunk(delta)))
    if outcome.finish_reason == FAILED:
        await send(_part(error_body(503, "the engine broke off; ask again", "engine_unavailable")))
        await send({"type": "http.response.body", "body": b""})
        return
    for last in answer.closing(outcome):
        await send(_part(last))
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class _Answer:
    """What has been streamed so far, and the chunks the client sees of it."""

    def __init__(self, gateway: Gateway, turn: Turn, step: Step, current: Span, notes: str) -> None:
        self._gateway = gateway
        self._turn = turn
        self._step = step
        self._current = current
        self._notes = notes
        self._scanner = turn.scanner()
        self._guarded = GuardedStream(gateway.guard, turn.question, turn.chat)
        self._chunks: list[EngineChunk] = []
        self._reason = DISCONNECTED
        self._charged = True
        self._first_token: float | None = None
        self._outcome: Outcome | None = None
        self._rest: list[dict[str, Any]] = []

    @property
    def version(self) -> str:
        """The start of the id of the version that answers."""
        return self._step.assignment.policy_version[:12]

    def take(self, chunk: EngineChunk) -> list[dict[str, Any]]:
        """Take an engine chunk; return the deltas that are now certain."""
        self._chunks.append(chunk)
        if chunk.token_ids and self._first_token is None:
            self._first_token = self._gateway.clock.monotonic() - self._turn.arrived
        if chunk.finish_reason is not None:
            self._reason = chunk.finish_reason
        deltas = self._guarded.feed(self._scanner.feed(chunk.text))
        if self.stopped:
            self._reason = CONTENT_FILTER
        return deltas

    @property
    def stopped(self) -> bool:
        """Whether the guard found what must not leave."""
        return self._guarded.stopped

    def fail(self, error: EngineError, waited: float) -> None:
        """Note that the engine broke off; so long the client had held it up by then."""
        self._reason = FAILED
        self._charged = error.status != TOO_LATE or self._time_was_enough(waited)
        arm = f"{self._step.assignment.arm}{'' if self._charged else UNCHARGED}"
        note = f"{arm}: {self.version}: broke off: {reason_to_keep(self._gateway, error)}"
        self._notes = "; ".join(filter(None, (self._notes, note)))

    def _time_was_enough(self, waited: float) -> bool:
        settings, tokens = self._gateway.settings, self._turn.chat.sampling.max_tokens
        whole = settings.engine.timeout_seconds
        had = max(whole - waited, 0.0)
        return is_charged(settings.gateway, Budget(had, had / whole), had, tokens)

    def rest(self) -> list[dict[str, Any]]:
        """Return the deltas that became certain at the end."""
        return self._rest

    def end(self) -> Outcome:
        """Log the decision, once, before the last chunk goes out."""
        if self._outcome is None:
            reply, self._rest = self._guarded.finish(self._scanner.finish())
            message = reply.message
            outcome = Outcome(
                assignment=self._step.assignment,
                rung=self._step.rung,
                answer=self._answer(),
                message=message,
                finish_reason=reply.finish_reason or finish_reason(message, self._reason),
                total_seconds=0.0,
                error=self._notes or None,
                guard=reply.report,
                charged=self._charged,
            )
            if self._reason == DISCONNECTED:
                self._gateway.metrics.count("disconnects")
            self._outcome = end_turn(self._gateway, self._turn, outcome, self._current)
        return self._outcome

    def opening(self) -> dict[str, Any]:
        """Return the chunk that opens the message."""
        return self.chunk({"role": "assistant", "content": ""})

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return one chunk in the OpenAI form."""
        return {
            "id": f"chatcmpl-{self._turn.decision_id}",
            "object": "chat.completion.chunk",
            "created": int(self._turn.arrived_at.timestamp()),
            "model": self._gateway.settings.policy.name,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }

    def closing(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return the chunk with the finish reason, and the usage chunk when it was asked for."""
        ours = headrace_of(self._turn, outcome, self._gateway.secret)
        chunks = [{**self.chunk({}, outcome.finish_reason), "headrace": ours}]
        if self._turn.chat.include_usage:
            usage = {"choices": [], "usage": usage_of(outcome.answer)}
            chunks.append({**self.chunk({}), **usage, "headrace": ours})
        return chunks

    def _answer(self) -> EngineAnswer:
        chunks = self._chunks
        return EngineAnswer(
            text="".join(chunk.text for chunk in chunks),
            prompt_token_ids=next((c.prompt_token_ids for c in chunks if c.prompt_token_ids), ()),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
            finish_reason=self._reason,
            first_token_seconds=self._first_token,
        )


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, decision_id: str, rung: str) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (DECISION_HEADER.lower().encode(), decision_id.encode()),
        (RUNG_HEADER.lower().encode(), rung.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _part(value: dict[str, Any] | ErrorBody) -> dict[str, Any]:
    body = b"data: " + to_json(value) + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": True}
