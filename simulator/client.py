"""The client of a simulated user: OpenAI chat requests and feedback over HTTP, as any app's.

It knows the gateway's public interface only.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from contracts.events import FunctionCall, Message, ToolCall
from simulator.product import Signal

REQUEST_SECONDS = 120.0


class RequestFailedError(Exception):
    """The gateway did not answer a request as it should; the message says how it failed."""


class Ours(Struct, frozen=True, kw_only=True):
    """What the gateway adds to the OpenAI response."""

    decision_id: str
    session_id: str
    policy_version: str
    arm: str
    feedback_token: str


class Answered(Struct, frozen=True, kw_only=True):
    """An answer and the decision it belongs to."""

    message: Message
    decision: Ours


class GatewayClient:
    """Asks and gives feedback; one connection pool, bounded by ``concurrency``.

    ``key`` is the API key that is sent along, "" for none.
    """

    def __init__(self, url: str, model: str, concurrency: int, key: str = "") -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            connector=aiohttp.TCPConnector(limit=2 * concurrency),
        )

    async def ask(
        self,
        text: str,
        tools: tuple[dict[str, Any], ...],
        *,
        user_id: str,
        session_id: str,
        stream: bool,
    ) -> Answered:
        """Send one question; RequestFailedError when no whole answer comes back."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "tools": list(tools),
            "user": user_id,
            "metadata": {"session_id": session_id},
            "stream": stream,
        }
        try:
            async with self._http.post(f"{self._url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    detail = (await response.text())[:200]
                    raise RequestFailedError(f"status {response.status}: {detail}")
                return await (_streamed(response) if stream else _whole(response))
        except (TimeoutError, aiohttp.ClientError, msgspec.MsgspecError, LookupError) as error:
            raise RequestFailedError(f"{type(error).__name__}: {error}") from error

    async def give_feedback(self, decision: Ours, user_id: str, signal: Signal) -> None:
        """Send one signal with the decision's token; RequestFailedError unless accepted."""
        body = {
            "decision_id": decision.decision_id,
            "session_id": decision.session_id,
            "user_id": user_id,
            "token": decision.feedback_token,
            "kind": signal.kind,
            "score": signal.score,
            "name": signal.name,
            "reason": signal.reason,
            "correction": msgspec.to_builtins(signal.correction),
        }
        said = {name: value for name, value in body.items() if value is not None}
        try:
            async with self._http.post(f"{self._url}/v1/feedback", json=said) as response:
                if response.status != 202:
                    detail = (await response.text())[:200]
                    raise RequestFailedError(f"feedback: status {response.status}: {detail}")
        except (TimeoutError, aiohttp.ClientError) as error:
            raise RequestFailedError(f"feedback: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


async def _whole(response: aiohttp.ClientResponse) -> Answered:
    body = await response.json()
    return Answered(
        message=_message(body["choices"][0]["message"]),
        decision=msgspec.convert(body["headrace"], Ours),
    )


async def _streamed(response: aiohttp.ClientResponse) -> Answered:
    """Put the chunks of a server-sent event stream together."""
    content, ours = "", None
    calls: dict[int, dict[str, Any]] = {}
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            break
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise RequestFailedError(f"stream: {chunk['error']}")
        ours = chunk.get("headrace", ours)
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            content += delta.get("content") or ""
            _join_calls(calls, delta.get("tool_calls") or ())
    if ours is None:
        raise RequestFailedError("stream: ended without its last chunk")
    message = {"content": content, "tool_calls": [calls[place] for place in sorted(calls)]}
    return Answered(message=_message(message), decision=msgspec.convert(ours, Ours))


def _join_calls(calls: dict[int, dict[str, Any]], deltas: Any) -> None:
    for delta in deltas:
        empty = {"id": "", "function": {"name": "", "arguments": ""}}
        call = calls.setdefault(delta.get("index", 0), empty)
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _message(message: dict[str, Any]) -> Message:
    return Message(
        role="assistant",
        content=message.get("content") or None,
        tool_calls=tuple(
            ToolCall(
                id=call["id"],
                function=FunctionCall(call["function"]["name"], call["function"]["arguments"]),
            )
            for call in message.get("tool_calls") or ()
        ),
    )
