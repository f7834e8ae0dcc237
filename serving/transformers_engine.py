"""An engine for machines without vLLM: the part of vLLM's HTTP API that we use, on transformers.

Meant for laptops and tests: small batches, no paging, no continuous batching. It binds to
loopback only, because loading adapters by path is not for strangers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contracts.clock import SystemClock
from contracts.codec import to_json
from contracts.errors import EngineError, SettingsError
from contracts.events import BASE_VERSION, Sampling
from contracts.heartbeat import beat
from contracts.processor import engine_dtype, processor_flags
from contracts.settings import Settings, load_settings
from contracts.tracing import span, start_tracing
from serving.door.engine_door import EngineDoor
from serving.generation import Job, LocalModel
from serving.generation_queue import GenerationQueue
from serving.metrics import CONTENT_TYPE
from serving.wire_errors import JSON, error_body

PROCESS = "engine"
BEAT_SECONDS = 1.0
DRAIN_SECONDS = 5
CLIENT_GONE = 499
"""Nobody receives it; the number is nginx's for a client that closed its request."""
WAITING = "vllm:num_requests_waiting"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


class _Chat(Struct):
    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    stream: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    seed: int | None = None


class _Load(Struct):
    lora_name: str
    lora_path: str = ""


class _ReloadPlace(Struct):
    weights_path: str


class _Reload(Struct):
    """What we take of vLLM's ``/collective_rpc``: this one method."""

    method: Literal["reload_weights"]
    kwargs: _ReloadPlace


class _Token(Struct):
    text: str
    token: int
    logprob: float
    reason: str | None


_chats = msgspec.json.Decoder(_Chat)
_reloads = msgspec.json.Decoder(_Reload)
_loads = msgspec.json.Decoder(_Load)


class TransformersEngine:
    """The state behind the routes: the queue in front of the model, and the adapters by name."""

    def __init__(self, model: LocalModel, max_adapters: int) -> None:
        self.queue = GenerationQueue(model)
        self.adapters: dict[str, str] = {}
        self.answered = 0
        self._model = model
        self._max_adapters = max_adapters

    async def load(self, name: str, path: str) -> None:
        """Load an adapter under a new name; EngineError 400 when that cannot be."""
        if not _NAME.fullmatch(name) or name == BASE_VERSION:
            raise EngineError(
                f"adapter name {name[:140]!r}; allowed: letters, digits, - and _", 400
            )
        if name in self.adapters:
            raise EngineError(f"The lora adapter '{name}' has already been loaded.", 400)
        if len(self.adapters) >= self._max_adapters:
            raise EngineError(f"{self._max_adapters} adapters are loaded; unload one first", 400)
        await asyncio.wrap_future(
            self.queue.call(lambda: self._model.load_adapter(name, Path(path)))
        )
        self.adapters[name] = path

    async def unload(self, name: str) -> None:
        """Unload an adapter after the requests that wait for it; EngineError 404 if unknown."""
        if self.adapters.pop(name, None) is None:
            raise EngineError(f"The lora adapter '{name}' cannot be found.", 404)
        await asyncio.wrap_future(self.queue.call(lambda: self._model.unload_adapter(name)))

    async def reload(self, path: str) -> None:
        """Replace the base model's weights between two batches; EngineError 400 if unfit."""
        await asyncio.wrap_future(self.queue.call(lambda: self._model.reload_weights(Path(path))))

    def begin(self, chat: _Chat) -> tuple[list[int], AsyncGenerator[_Token, None]]:
        """Return the prompt's token ids and the tokens as they are drawn; EngineError if invalid.

        Closing the generator ends the generation.
        """
        if chat.model != BASE_VERSION and chat.model not in self.adapters:
            raise EngineError(f"The model `{chat.model}` does not exist.", 404)
        prompt, room = self._model.render(chat.messages, chat.tools)
        try:
            sampling = msgspec.convert(
                {
                    "temperature": chat.temperature,
                    "top_p": chat.top_p,
                    "top_k": max(chat.top_k, 0),
                    "max_tokens": min(chat.max_tokens, room),
                    "seed": chat.seed,
                },
                Sampling,
            )
        except msgspec.ValidationError as error:
            raise EngineError(str(error), 400) from error
        return prompt, self._tokens(chat.model, prompt, sampling)

    async def _tokens(
        self, model: str, prompt: list[int], sampling: Sampling
    ) -> AsyncGenerator[_Token, None]:
        loop = asyncio.get_running_loop()
        drawn: asyncio.Queue[_Token] = asyncio.Queue()  # bounded by max_tokens
        left = False

        def emit(text: str, token: int, logprob: float, reason: str | None) -> None:
            loop.call_soon_threadsafe(drawn.put_nowait, _Token(text, token, logprob, reason))

        done = asyncio.wrap_future(
            self.queue.generate(model, Job(prompt, sampling, emit, lambda: left))
        )
        try:
            reason = None
            while reason is None:
                take = asyncio.ensure_future(drawn.get())
                await asyncio.wait((take, done), return_when=asyncio.FIRST_COMPLETED)
                if not take.done() and done.exception() is not None and drawn.empty():
                    take.cancel()
                    raise EngineError(f"generation failed: {done.exception()}", 500)
                token = await take
                reason = token.reason
                yield token
            self.answered += 1
        finally:
            left = True
            done.add_done_callback(lambda future: future.cancelled() or future.exception())


def make_app(engine: TransformersEngine, settings: Settings) -> EngineDoor:
    """Return the ASGI application behind its door; its lifespan runs the generating thread."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.queue.start()
        heart = asyncio.create_task(_heartbeat(engine, settings))
        try:
            yield
        finally:
            heart.cancel()
            await asyncio.to_thread(engine.queue.stop)

    app = Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/load_lora_adapter", _load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", _unload, methods=["POST"]),
            Route("/pause", _pause, methods=["POST"]),
            Route("/resume", _resume, methods=["POST"]),
            Route("/collective_rpc", _reload, methods=["POST"]),
            Route("/reset_prefix_cache", _reset, methods=["POST"]),
        ],
        exception_handlers={EngineError: _refusal, msgspec.MsgspecError: _invalid},
        lifespan=lifespan,
    )
    app.state.engine = engine
    given = settings.engine
    return EngineDoor(app, given.key, given.admin_key, given.faults)


async def _health(_: Request) -> Response:
    return Response()


async def _metrics(request: Request) -> Response:
    waiting = request.app.state.engine.queue.waiting()
    text = f"# TYPE {WAITING} gauge\n{WAITING} {waiting}\n"
    return Response(text, media_type=CONTENT_TYPE)


async def _chat(request: Request) -> Response:
    engine: TransformersEngine = request.app.state.engine
    chat = _chats.decode(await request.body())
    with span(f"chat {chat.model}", parent=dict(request.headers)):
        prompt, tokens = engine.begin(chat)
        if chat.stream:
            return StreamingResponse(_events(prompt, tokens), media_type="text/event-stream")
        drawn = []
        async with aclosing(tokens):
            async for token in tokens:
                drawn.append(token)
                if await request.is_disconnected():
                    return Response(status_code=CLIENT_GONE)
    body = _choice(drawn, "message")
    return Response(to_json({**body, "prompt_token_ids": prompt}), media_type=JSON)


async def _events(prompt: list[int], tokens: AsyncGenerator[_Token, None]) -> AsyncIterator[bytes]:
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    yield _event({**opening, "prompt_token_ids": prompt})
    try:
        async for token in tokens:
            yield _event(_choice([token], "delta"))
        yield b"data: [DONE]\n\n"
    except EngineError as error:
        yield _event(error_body(500, str(error)))
    finally:
        await tokens.aclose()


def _choice(drawn: list[_Token], form: str) -> dict[str, Any]:
    choice = {
        "index": 0,
        form: {"role": "assistant", "content": "".join(token.text for token in drawn)},
        "logprobs": {"content": [{"logprob": token.logprob} for token in drawn]},
        "token_ids": [token.token for token in drawn],
        "finish_reason": drawn[-1].reason,
    }
    return {"object": "chat.completion", "choices": [choice]}


def _event(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


async def _models(request: Request) -> Response:
    engine: TransformersEngine = request.app.state.engine
    rows = [{"id": BASE_VERSION, "object": "model", "root": BASE_VERSION, "parent": None}]
    for name, path in engine.adapters.items():
        rows.append({"id": name, "object": "model", "root": path, "parent": BASE_VERSION})
    return Response(to_json({"object": "list", "data": rows}), media_type=JSON)


async def _load(request: Request) -> Response:
    asked = _loads.decode(await request.body())
    await request.app.state.engine.load(asked.lora_name, asked.lora_path)
    return Response(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


async def _unload(request: Request) -> Response:
    asked = _loads.decode(await request.body())
    await request.app.state.engine.unload(asked.lora_name)
    return Response(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


async def _pause(request: Request) -> Response:
    await asyncio.wrap_future(request.app.state.engine.queue.pause())
    return Response(to_json({"status": "paused"}), media_type=JSON)


async def _resume(request: Request) -> Response:
    request.app.state.engine.queue.resume()
    return Response(to_json({"status": "resumed"}), media_type=JSON)


async def _reload(request: Request) -> Response:
    asked = _reloads.decode(await request.body())
    await request.app.state.engine.reload(asked.kwargs.weights_path)
    return Response(to_json({"results": [None]}), media_type=JSON)


async def _reset(_: Request) -> Response:
    """Nothing is kept from one batch to the next."""
    return Response(to_json({"success": True}), media_type=JSON)


def _refusal(_: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, EngineError) and error.status else 500
    return Response(to_json(error_body(status, str(error))), status, media_type=JSON)


def _invalid(_: Request, error: Exception) -> Response:
    return Response(to_json(error_body(400, str(error))), 400, media_type=JSON)


async def _heartbeat(engine: TransformersEngine, settings: Settings) -> None:
    clock = SystemClock()
    while True:
        counts = {"answered": engine.answered, "adapters": len(engine.adapters)}
        waiting = engine.queue.waiting()
        beat(settings.state_dir, PROCESS, clock, ready=True, lag=waiting, counts=counts)
        await asyncio.sleep(BEAT_SECONDS)


def main() -> None:
    """Run the engine of the settings until SIGTERM or SIGINT."""
    settings = load_settings()
    if not settings.policy.model or not settings.engine.port:
        raise SettingsError(
            f"policy.model is {settings.policy.model!r} and engine.port {settings.engine.port}; "
            "give a model directory with safetensors weights and a port"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    tracing = start_tracing(
        PROCESS,
        otlp_endpoint=settings.tracing.otlp_endpoint or None,
        span_file=settings.state_dir / "spans" / f"{PROCESS}.jsonl",
    )
    dtype = engine_dtype(settings.engine.dtype, processor_flags())
    model = LocalModel(settings.policy.model, settings.engine.max_model_len, dtype)
    config = uvicorn.Config(
        make_app(TransformersEngine(model, settings.engine.max_adapters), settings),
        host="127.0.0.1",
        port=settings.engine.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        tracing.shutdown()


def _exit(*_: object) -> None:
    raise SystemExit(0)
