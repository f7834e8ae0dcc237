"""The one HTTP client of engines: vLLM 0.32 and our transformers server alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from contracts.codec import to_json
from contracts.errors import EngineError
from contracts.events import Sampling
from serving.engine import EngineAnswer, EngineChunk, EngineRequest
from serving.engine_wire import (
    chat_body,
    completions,
    counts,
    decode,
    message_of,
    models,
    only_choice,
    refusal,
    versions,
)
from serving.weight_swap import USUAL, Deadlines, Weights, swap_weights

CONNECT_SECONDS = 5.0
ADMIN_SECONDS = 60.0
HEALTH_SECONDS = 5.0
MAX_CONNECTIONS = 1024
KEEP_ALIVE_SECONDS = 3.0  # below the 5 s of uvicorn: a reused connection is never half closed
READ_BUFFER_BYTES = 1 << 20  # one SSE line holds all prompt token ids

CHAT = "/v1/chat/completions"

_JSON = {"Content-Type": "application/json"}


class HttpEngine:
    """The client of an engine at ``url``; make it and use it in one event loop.

    ``timeout_seconds`` bounds a whole generation, first byte to last. ``key`` and ``admin_key`` are
    those of the engine's door (`serving.door.engine_door`); the second is for the controller alone.
    """

    def __init__(
        self, url: str, timeout_seconds: float, key: str = "", admin_key: str = ""
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout_seconds
        self._headers = {**_JSON, **_bearer(key or admin_key)}
        self._admin_headers = _bearer(admin_key)
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        """Generate a whole answer; see `Engine`."""
        async with self._chat(request, stream=False) as response:
            body = decode(completions, await response.read())
        choice = only_choice(body)
        ids, logprobs = choice.drawn()
        return EngineAnswer(
            text=(choice.message.content if choice.message else None) or "",
            prompt_token_ids=body.prompt_token_ids or (),
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=choice.finish_reason or "stop",
        )

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate piece by piece; see `Engine`. EngineError when the stream breaks off."""
        finished = False
        async with (
            self._chat(request, stream=True) as response,
            aclosing(_events(response)) as all_,
        ):
            async for data in all_:
                body = decode(completions, data)
                if body.error is not None:
                    raise EngineError(f"engine: {message_of(body.error)}", 500)
                if not body.choices:
                    continue
                choice = body.choices[0]
                ids, logprobs = choice.drawn()
                finished = finished or choice.finish_reason is not None
                yield EngineChunk(
                    text=(choice.delta.content if choice.delta else None) or "",
                    token_ids=ids,
                    logprobs=logprobs,
                    finish_reason=choice.finish_reason,
                    prompt_token_ids=body.prompt_token_ids or (),
                )
        if not finished:
            raise EngineError(f"engine {self._url} broke off in the middle of an answer")

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter under a new name; see `Engine`."""
        location = str(path.resolve())  # noqa: ASYNC240 - one look at the file system, off the request path
        body = {"lora_name": name, "lora_path": location}
        try:
            await self.admin("POST", "/v1/load_lora_adapter", body)
        except EngineError as error:
            if error.status != 400 or (await self.models()).get(name) != location:
                raise

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `Engine`."""
        try:
            await self.admin("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineError as error:
            if error.status != 404:
                raise

    async def models(self) -> dict[str, str]:
        """Return name to adapter path of all served models; see `Engine`."""
        async with self._call("GET", "/v1/models", None, HEALTH_SECONDS) as response:
            listing = decode(models, await response.read())
        return {model.id: (model.root or "") if model.parent else "" for model in listing.data}

    async def running(self) -> dict[str, int] | None:
        """Return model to number of its answers under way; see `Engine`."""
        try:
            answer = await self.admin("GET", "/headrace/running", seconds=HEALTH_SECONDS)
            return decode(counts, answer).running
        except EngineError as error:
            if error.status != 404:
                raise
            return None

    async def weights(self) -> str:
        """Return whose full weights the base model has; "" for its own, or without a door."""
        try:
            answer = await self.admin("GET", "/headrace/weights", seconds=HEALTH_SECONDS)
            return decode(versions, answer).version
        except EngineError as error:
            if error.status != 404:
                raise
            return ""

    async def swap_weights(self, to: Weights, back: Weights, deadlines: Deadlines = USUAL) -> None:
        """Replace the weights of the base model; see `Engine`."""
        await swap_weights(self, to, back, deadlines)

    async def probe(self, model: str, seconds: float) -> None:
        """Ask a model for one token, past a hold; EngineError when none comes in time."""
        messages = [{"role": "user", "content": "Hello"}]
        request = EngineRequest(model, messages, [], Sampling(max_tokens=1))
        await self.admin("POST", CHAT, chat_body(request, stream=False), seconds)

    async def admin(
        self, method: str, path: str, body: object = None, seconds: float = ADMIN_SECONDS
    ) -> bytes:
        """Call a path that needs the admin key, and return the body of the answer."""
        headers, data = self._admin_headers, None if body is None else to_json(body)
        async with self._call(method, path, data, seconds, headers) as response:
            return await response.read()

    async def healthy(self) -> bool:
        """Tell whether the engine answers its health check."""
        try:
            async with self._call("GET", "/health", None, HEALTH_SECONDS):
                return True
        except EngineError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _chat(self, request: EngineRequest, *, stream: bool) -> Any:
        return self._call(
            "POST",
            CHAT,
            to_json(chat_body(request, stream=stream)),
            self._timeout,
            request.trace,
        )

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        seconds: float,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_SECONDS
                ),
                auto_decompress=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers={**self._headers, **(headers or {})},
                timeout=timeout,
            ) as response:
                if response.status >= 400:
                    raise refusal(response.status, await response.read())
                yield response
        except TimeoutError as error:
            raise EngineError(
                f"engine {self._url}{path}: no answer within {seconds:.3g} s", 504
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(
                f"engine {self._url}{path}: {error or type(error).__name__}"
            ) from error


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yield the data of each server-sent event until ``[DONE]``; EngineError for one too long."""
    try:
        async for line in response.content:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data
    except LineTooLong:
        raise EngineError(
            f"engine: an event of its stream is longer than {2 * READ_BUFFER_BYTES} bytes"
        ) from None  # the cause quotes the line, which may hold what a user said
