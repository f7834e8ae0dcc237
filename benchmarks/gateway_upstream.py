"""The mock upstream and the raw proxy of the gateway benchmark: two ASGI applications.

``python -m benchmarks.gateway_upstream mock --port N`` answers every chat completion with the same
words, plain or as server-sent events, in the form of vLLM with token ids and log-probabilities.
``... proxy --port N --upstream URL`` forwards requests to it unread: what any Python gateway costs.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import aiohttp
import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

WORDS = ("You", " can", " return", " it", " within", " thirty", " days", ".")
CHUNK_SECONDS = 0.005
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class _Asked(msgspec.Struct):
    stream: bool = False


_asked = msgspec.json.Decoder(_Asked)


def _logprobs(words: tuple[str, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = {"logprob": -0.105, "bytes": None, "top_logprobs": []}
    return {"content": [{"token": word, **entry} for word in words]}


def _answer() -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(WORDS)},
        "logprobs": _logprobs(WORDS),
        "finish_reason": "stop",
        "token_ids": list(range(100, 100 + len(WORDS))),
    }
    count = len(WORDS)
    usage = {"prompt_tokens": 24, "completion_tokens": count, "total_tokens": 24 + count}
    head = {"id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": "base"}
    tail = {"choices": [choice], "usage": usage, "prompt_token_ids": list(range(24))}
    return msgspec.json.encode({**head, **tail})


def _chunks() -> list[bytes]:
    head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": "base"}
    events: list[dict[str, Any]] = []
    for place, word in enumerate(WORDS):
        last = place == len(WORDS) - 1
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": word} if not place else {"content": word},
            "logprobs": _logprobs((word,)),
            "finish_reason": "stop" if last else None,
            "token_ids": [100 + place],
        }
        prompt = {} if place else {"prompt_token_ids": list(range(24))}
        events.append({**head, "choices": [choice], **prompt})
    lines = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events]
    return [*lines, b"data: [DONE]\n\n"]


ANSWER, CHUNKS = _answer(), _chunks()


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def mock(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a chat completion; any other path gives an empty list of models."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    if scope["path"] != "/v1/chat/completions":
        models = {"object": "list", "data": [{"id": "base", "object": "model", "root": "base"}]}
        await _whole(send, msgspec.json.encode(models))
    elif not _asked.decode(body).stream:
        await _whole(send, ANSWER)
    else:
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        for chunk in CHUNKS:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(CHUNK_SECONDS)
        await send({"type": "http.response.body", "body": b""})


async def _whole(send: Send, body: bytes) -> None:
    headers = [*_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RawProxy:
    """Forwards every request to ``upstream`` and its answer back, piece by piece."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        body = await read_body(receive)
        url = self._upstream + scope["path"]
        headers = {"Content-Type": "application/json"}
        async with self._session.request(
            scope["method"], url, data=body, headers=headers
        ) as answer:
            kind = answer.headers["Content-Type"].encode()
            start = {"type": "http.response.start", "status": answer.status}
            if kind.startswith(b"application/json"):
                content = await answer.read()
                length = (b"content-length", str(len(content)).encode())
                await send({**start, "headers": [(b"content-type", kind), length]})
                await send({"type": "http.response.body", "body": content})
                return
            await send({**start, "headers": [(b"content-type", kind)]})
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Serve one of the two until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_upstream")
    parser.add_argument("kind", choices=("mock", "proxy"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", default="")
    options = parser.parse_args()
    app = mock if options.kind == "mock" else RawProxy(options.upstream)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
