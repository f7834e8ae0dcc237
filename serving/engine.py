"""The inference engine seen from its callers: requests, answers, and the one HTTP client.

It serves vLLM 0.32 and our transformers server alike. It knows nothing of arms, users or tools'
meaning: the answer is raw text, with the engine's own token ids and log-probabilities.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from contracts.codec import to_json
from contracts.errors import EngineError
from contracts.events import Sampling
from serving.weight_swap import USUAL, Deadlines, Weights, swap_weights

CONNECT_SECONDS = 5.0
ADMIN_SECONDS = 60.0
HEALTH_SECONDS = 5.0
MAX_CONNECTIONS = 1024
KEEP_ALIVE_SECONDS = 3.0  # below the 5 s of uvicorn: a reused connection is never half closed
READ_BUFFER_BYTES = 1 << 20  # one SSE line holds all prompt token ids
MESSAGE_CHARACTERS = 500
"""How much of an engine's error message is kept: it may quote a whole conversation."""

CHAT = "/v1/chat/completions"

_JSON = {"Content-Type": "application/json"}


class EngineRequest(Struct, frozen=True):
    """One generation. ``model`` is "base" or the name of a loaded adapter (its version).

    ``messages`` and ``tools`` are in the OpenAI wire form; ``trace`` holds W3C trace headers.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: Sampling
    trace: dict[str, str] = {}


class EngineAnswer(Struct, frozen=True):
    """A finished generation: ``token_ids`` includes the end token, ``logprobs`` has one per id.

    The log-probabilities are those of the distribution the token was drawn from: after
    temperature, top_k and top_p (at temperature 0 those of the untempered model). vLLM gives these
    under ``--logprobs-mode processed_logprobs``.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    first_token_seconds: float | None = None


class EngineChunk(Struct, frozen=True):
    """A piece of a generation; ``prompt_token_ids`` is set in the first alone.

    ``text`` may be empty while ``token_ids`` is not: half a character is held back.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_token_ids: tuple[int, ...] = ()


class Engine(Protocol):
    """What the gateway and the rollout controller ask of an engine. All raise EngineError."""

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        """Generate a whole answer."""
        ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate piece by piece; closing the generator stops the generation."""
        ...

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make the adapter in a directory available under a new name; twice the same is fine."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not loaded is fine, 409 while its answers run."""
        ...

    async def models(self) -> dict[str, str]:
        """Return name to adapter path of all served models; the base model's path is ""."""
        ...

    async def running(self) -> dict[str, int] | None:
        """Return model to number of its answers under way; None when the engine has no door."""
        ...

    async def weights(self) -> str:
        """Return whose full weights the base model has; "" for its own."""
        ...

    async def swap_weights(self, to: Weights, back: Weights) -> None:
        """Replace the weights of the base model; see `serving.weight_swap`."""
        ...

    async def healthy(self) -> bool:
        """Tell whether the engine answers its health check."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


# --- the wire, as far as we read it ----------------------------------------------------------


class _Logprob(Struct):
    logprob: float


class _Logprobs(Struct):
    content: tuple[_Logprob, ...] | None = None


class _Text(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Text | None = None
    delta: _Text | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None

    def drawn(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return (token ids, their log-probabilities); EngineError when they do not pair up."""
        ids = self.token_ids or ()
        entries = self.logprobs.content if self.logprobs else None
        logprobs = tuple(entry.logprob for entry in entries or ())
        if len(ids) != len(logprobs):
            raise EngineError(
                f"engine gave {len(ids)} token ids but {len(logprobs)} logprobs; it must be vLLM "
                "0.32 or 'python -m serving engine', which honour return_token_ids and logprobs"
            )
        return ids, logprobs


class _Completion(Struct):
    choices: tuple[_Choice, ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None
    error: dict[str, Any] | None = None


class _Model(Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _Models(Struct):
    data: tuple[_Model, ...]


class _Running(Struct):
    running: dict[str, int]


class _Version(Struct):
    version: str


class _Refusal(Struct):
    error: dict[str, Any]


_Wire = TypeVar("_Wire")
_completions = msgspec.json.Decoder(_Completion)
_models = msgspec.json.Decoder(_Models)
_versions = msgspec.json.Decoder(_Version)
_counts = msgspec.json.Decoder(_Running)
_refusals = msgspec.json.Decoder(_Refusal)


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
            body = _decode(_completions, await response.read())
        choice = _only_choice(body)
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
                body = _decode(_completions, data)
                if body.error is not None:
                    raise EngineError(f"engine: {_message(body.error)}", 500)
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
            listing = _decode(_models, await response.read())
        return {model.id: (model.root or "") if model.parent else "" for model in listing.data}

    async def running(self) -> dict[str, int] | None:
        """Return model to number of its answers under way; see `Engine`."""
        try:
            return _decode(_counts, await self.admin("GET", "/headrace/running")).running
        except EngineError as error:
            if error.status != 404:
                raise
            return None

    async def weights(self) -> str:
        """Return whose full weights the base model has; "" for its own, or without a door."""
        try:
            return _decode(_versions, await self.admin("GET", "/headrace/weights")).version
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
        await self.admin("POST", CHAT, _chat_body(request, stream=False), seconds)

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
            to_json(_chat_body(request, stream=stream)),
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
                    raise _refusal(response.status, await response.read())
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


def _chat_body(request: EngineRequest, *, stream: bool) -> dict[str, Any]:
    """Return the body that makes vLLM give raw text, token ids and logprobs.

    ``tool_choice`` "none" renders the tools into the prompt and leaves the answer unparsed;
    ``top_logprobs`` 0 asks for the drawn tokens alone. All sampling values are given, so that no
    default of the model's generation config can change the distribution.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": request.messages,
        "stream": stream,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": True,
    }
    if request.tools:
        body["tools"] = request.tools
        body["tool_choice"] = "none"
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yield the data of each server-sent event until ``[DONE]``."""
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield data


def _only_choice(body: _Completion) -> _Choice:
    if len(body.choices) != 1:
        raise EngineError(f"engine answered with {len(body.choices)} choices; expected 1")
    return body.choices[0]


def _decode(decoder: msgspec.json.Decoder[_Wire], data: bytes) -> _Wire:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineError(f"engine answered what we cannot read: {error}") from error


def _refusal(status: int, data: bytes) -> EngineError:
    try:
        message = _message(_refusals.decode(data).error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = data[:MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return EngineError(f"engine refused ({status}): {message}", status)


def _message(error: dict[str, Any]) -> str:
    return str(error.get("message", error))[:MESSAGE_CHARACTERS]
