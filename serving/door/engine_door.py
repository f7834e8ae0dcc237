"""The door in front of an engine: who may do what, what is under way, and faults for drills.

ASGI middleware of the standard library alone, because it runs inside vLLM (``--middleware
engine_door.EngineDoor`` with this folder on PYTHONPATH) and inside our transformers engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

KEY = "HEADRACE_ENGINE__KEY"
ADMIN_KEY = "HEADRACE_ENGINE__ADMIN_KEY"
FAULTS = "HEADRACE_ENGINE__FAULTS"

GENERATING = ("/v1/chat/completions", "/v1/completions")
READING = ("/v1/models", "/metrics", "/metrics/")
HEALTH = "/health"
UNLOAD = "/v1/unload_lora_adapter"

MAX_BODY_BYTES = 16 << 20
MAX_FAULTS = 16
MAX_DELAY_SECONDS = 600.0
MAX_CUT_BYTES = 1 << 20
LOOK_SECONDS = 0.2
MAX_NAME = 200
MAX_HELD = 512
BASE = "base"
"""The name that both engines serve the base model by."""


class EngineDoor:
    """Lets the engine key generate and read, and the admin key alone do all else.

    Without an engine key anyone who reaches the engine may generate; without an admin key nobody
    may change it. ``/health`` is open. An adapter is unloaded only while none of its answers is
    under way (409 otherwise). The door's own paths, for the admin key:

    - ``GET /headrace/running``: answers under way by model.
    - ``GET | POST | DELETE /headrace/faults``: what goes wrong for a model, if faults are allowed.
    - ``POST {"seconds"} | DELETE /headrace/hold``: answers that begin wait, for so long at most.
    - ``GET | POST {"version"} /headrace/weights``: whose full weights the base model has; only that
      name is answered then, "" for the base's own.

    What is not given comes from the environment.
    """

    def __init__(
        self,
        app: App,
        key: str | None = None,
        admin_key: str | None = None,
        faults: bool | None = None,
    ) -> None:
        given = os.environ
        self._app = app
        self._key = given.get(KEY, "") if key is None else key
        self._admin_key = given.get(ADMIN_KEY, "") if admin_key is None else admin_key
        allowed = given.get(FAULTS, "").lower() in ("1", "true") if faults is None else faults
        self._faults: dict[str, dict[str, Any]] | None = {} if allowed else None
        self._running: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._held = 0
        self._hold_until = 0.0
        self._let_go = asyncio.Event()
        self._weights = ""
        self._own: dict[str, App] = {
            "/headrace/running": self._show_running,
            "/headrace/faults": self._change_faults,
            "/headrace/hold": self._change_hold,
            "/headrace/weights": self._change_weights,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket" and not self._is_admin(scope):
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        generating = method == "POST" and path in GENERATING
        reading = method in ("GET", "HEAD") and path in READING
        if method in ("GET", "HEAD") and path == HEALTH:
            await self._app(scope, receive, send)
        elif generating or reading:
            if not self._may_generate(scope):
                await _refuse(send, 403, "this needs the engine key as a bearer token")
            elif generating:
                await self._generate(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        elif not self._is_admin(scope):
            await _refuse(send, 403, f"{method} {path} needs the admin key as a bearer token")
        elif path == UNLOAD:
            await self._unload(scope, receive, send)
        else:
            await self._own.get(path, self._app)(scope, receive, send)

    async def _show_running(self, _scope: Message, _receive: Receive, send: Send) -> None:
        await _answer(send, 200, {"running": dict(self._running)})

    # --- keys -----------------------------------------------------------------------------------

    def _is_admin(self, scope: Message) -> bool:
        return bool(self._admin_key) and _same(_bearer(scope), self._admin_key)

    def _may_generate(self, scope: Message) -> bool:
        return not self._key or _same(_bearer(scope), self._key) or self._is_admin(scope)

    # --- what is under way ----------------------------------------------------------------------

    async def _generate(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await _refuse(send, 413, f"the body has more than {MAX_BODY_BYTES} bytes or broke off")
            return
        if not self._is_admin(scope) and not await self._let_pass():
            await _refuse(send, 503, f"{MAX_HELD} answers wait for new weights; try again later")
            return
        model = _text_of(body, "model")
        if model in self._leaving or (self._weights and model != self._weights):
            await _refuse(send, 404, f"The model `{model}` does not exist.")
            return
        if self._weights:
            body = json.dumps({**json.loads(body), "model": BASE}).encode()
            scope = _with_length(scope, len(body))
        self._running[model] += 1
        try:
            if await self._delayed(model, receive):
                await self._under_faults(model, scope, _again(body, receive), send)
        finally:
            self._running[model] -= 1
            if not self._running[model]:
                del self._running[model]

    async def _unload(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        name = _text_of(body or b"", "lora_name")
        if running := self._running[name]:
            await _refuse(send, 409, f"{running} answers of {name} are under way; try again later")
            return
        self._leaving.add(name)  # an answer that begins meanwhile could lose its adapter
        try:
            await self._app(scope, _again(body or b"", receive), send)
        finally:
            self._leaving.discard(name)

    # --- full weights ---------------------------------------------------------------------------

    async def _let_pass(self) -> bool:
        """Wait while answers are held; False when too many wait already."""
        if self._hold_left() <= 0:
            return True
        if self._held >= MAX_HELD:
            return False
        self._held += 1
        try:
            while (left := self._hold_left()) > 0:  # a hold that was renewed holds them too
                with contextlib.suppress(TimeoutError):  # whoever asked for the hold is gone
                    await asyncio.wait_for(self._let_go.wait(), left)
        finally:
            self._held -= 1
        return True

    def _hold_left(self) -> float:
        return self._hold_until - asyncio.get_running_loop().time()

    async def _change_hold(self, scope: Message, receive: Receive, send: Send) -> None:
        seconds = 0.0
        if scope["method"] == "POST":
            seconds = _number_of(await _body(receive) or b"", "seconds")
            if not 0.0 < seconds <= MAX_DELAY_SECONDS:
                await _refuse(send, 400, f"seconds: more than 0, at most {MAX_DELAY_SECONDS:.0f}")
                return
        elif scope["method"] != "DELETE":
            await _refuse(send, 405, "POST or DELETE")
            return
        self._let_go.set()  # those who wait look again how long
        self._let_go = asyncio.Event()
        self._hold_until = asyncio.get_running_loop().time() + seconds
        await _answer(send, 200, {"seconds": seconds})

    async def _change_weights(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            version = _text_of(await _body(receive) or b"", "version")
            if len(version) > MAX_NAME:
                await _refuse(send, 400, f"version: at most {MAX_NAME} characters")
                return
            self._weights = version
        elif scope["method"] != "GET":
            await _refuse(send, 405, "GET or POST")
            return
        await _answer(send, 200, {"version": self._weights})

    # --- faults for drills ----------------------------------------------------------------------

    async def _delayed(self, model: str, receive: Receive) -> bool:
        """Wait as a fault asks; False when the client leaves meanwhile.

        A fault that is changed or cleared lets those who wait for it go on.
        """
        fault = (self._faults or {}).get(model)
        if fault is None or not fault["delay_seconds"]:
            return True
        clock = asyncio.get_running_loop().time
        end = clock() + fault["delay_seconds"]
        gone = asyncio.ensure_future(_left(receive))
        try:
            while not gone.done() and (self._faults or {}).get(model) is fault and clock() < end:
                await asyncio.wait({gone}, timeout=min(LOOK_SECONDS, end - clock()))
            return not gone.done()
        finally:
            gone.cancel()

    async def _under_faults(self, model: str, scope: Message, receive: Receive, send: Send) -> None:
        fault = (self._faults or {}).get(model)
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault["status"]:
            await _refuse(send, fault["status"], "this fault was asked for by a drill")
        elif fault["cut_after_bytes"] is None:
            await self._app(scope, receive, send)
        else:
            await self._cut(fault["cut_after_bytes"], scope, receive, send)

    async def _cut(self, left: int, scope: Message, receive: Receive, send: Send) -> None:
        """Send so many bytes of the body; the server closes a connection that was not finished."""
        cut = False

        async def some(message: Message) -> None:
            nonlocal left, cut
            if message["type"] != "http.response.body":
                await send(message)
                return
            piece = message.get("body", b"")[:left]
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if left == 0:
                cut = True
                raise _CutError

        try:
            await self._app(scope, receive, some)
        except Exception:
            if not cut:
                raise

    async def _change_faults(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if self._faults is None:
            await _refuse(send, 404, f"faults are off; start the engine with {FAULTS}=true")
            return
        if method == "DELETE":
            asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model")
            for model in asked or list(self._faults):
                self._faults.pop(model, None)
        elif method == "POST":
            try:
                fault = _fault(json.loads(await _body(receive) or b""))
            except (ValueError, TypeError, RecursionError) as error:
                await _refuse(send, 400, str(error))
                return
            if fault["model"] not in self._faults and len(self._faults) >= MAX_FAULTS:
                await _refuse(send, 400, f"{MAX_FAULTS} models have faults; delete some first")
                return
            self._faults[fault["model"]] = fault
        elif method != "GET":
            await _refuse(send, 405, "GET, POST or DELETE")
            return
        await _answer(send, 200, {"faults": list(self._faults.values())})


class _CutError(Exception):
    """Ends an answer in the middle."""


def _fault(given: Any) -> dict[str, Any]:
    """Return a fault with all its fields; ValueError says what is allowed."""
    allowed = {"model", "delay_seconds", "status", "cut_after_bytes"}
    if not isinstance(given, dict) or not given.keys() <= allowed or "model" not in given:
        raise ValueError(f"give an object with model and some of {sorted(allowed - {'model'})}")
    model, delay = given["model"], given.get("delay_seconds", 0.0)
    status, cut = given.get("status", 0), given.get("cut_after_bytes")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_NAME:
        raise ValueError(f"model: 1 to {MAX_NAME} characters")
    if type(delay) not in (int, float) or not 0.0 <= delay <= MAX_DELAY_SECONDS:
        raise ValueError(f"delay_seconds {delay!r}: 0 to {MAX_DELAY_SECONDS:.0f}")
    if type(status) is not int or not (status == 0 or 400 <= status <= 599):
        raise ValueError(f"status {status!r}: 0 for none, or 400 to 599")
    if cut is not None and (type(cut) is not int or not 0 <= cut <= MAX_CUT_BYTES):
        raise ValueError(f"cut_after_bytes {cut!r}: null for none, or 0 to {MAX_CUT_BYTES}")
    return {"model": model, "delay_seconds": delay, "status": status, "cut_after_bytes": cut}


def _bearer(scope: Message) -> bytes:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            found: bytes = value[7:].strip()
            return found
    return b""


def _same(given: bytes, key: str) -> bool:
    return hmac.compare_digest(given, key.encode())


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body; None when it is too long or the client left."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _left(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives the body once more, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> Message:
        return waiting.pop() if waiting else await receive()

    return once


def _text_of(body: bytes, field: str) -> str:
    """Return a text field of a JSON object, "" where there is none: the engine will say why."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    value = found.get(field) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _number_of(body: bytes, field: str) -> float:
    """Return a number of a JSON object, 0 where there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return 0.0
    value = found.get(field) if isinstance(found, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value)


def _with_length(scope: Message, length: int) -> Message:
    """Return the scope of a request whose body has another length."""
    kept = [(n, v) for n, v in scope["headers"] if n.lower() != b"content-length"]
    return {**scope, "headers": [*kept, (b"content-length", b"%d" % length)]}


async def _refuse(send: Send, status: int, message: str) -> None:
    error = {"message": message, "type": "engine_door", "param": None, "code": status}
    await _answer(send, status, {"error": error})


async def _answer(send: Send, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
