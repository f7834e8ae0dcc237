"""A gateway in the test's own loop, on an engine whose versions do what a script says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from console.local_broker import free_port
from contracts import settings as s
from contracts.errors import EngineError
from contracts.events import AuditRecord, Decision, Rollout
from serving.engine import EngineAnswer, EngineChunk, EngineRequest
from serving.gateway_process import Running, assemble, make_app
from serving.http_engine import HttpEngine
from serving.shadow import Shadows

SECTIONS = ("segments", "engine", "guard", "streams")


STATUS = {"fail": 500, "busy": 429, "invalid": 400}


class ScriptedEngine(HttpEngine):
    """Answers "I am VERSION.", or the pieces of ``says``, unless ``faults`` says otherwise.

    Faults: "fail", "busy", "invalid", "hang", and of streams "break-early" (before any text) and
    "break-late" (after some) and "run-over" (after some, for want of time).
    """

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", 5.0)
        self.faults: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.says: tuple[str, ...] = ()

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        await self._meet(request)
        if self.says:
            return EngineAnswer("".join(self.says), (1,), (2, 3), (-0.1, -0.2), "stop")
        return EngineAnswer(f"I am {request.model}.", (1,), (2, 3), (-0.1, -0.2), "stop")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        fault = await self._meet(request)
        yield EngineChunk("", (), (), None, (1,))
        if fault == "break-early":
            raise EngineError("engine broke off")
        for place, piece in enumerate(self.says):
            reason = "stop" if place == len(self.says) - 1 else None
            yield EngineChunk(piece, (place,), (-0.1,), reason)
        if self.says:
            return
        yield EngineChunk("I am ", (2,), (-0.1,))
        if fault == "break-late":
            raise EngineError("engine broke off")
        if fault == "run-over":
            raise EngineError("engine: no answer within 60 s", 504)
        yield EngineChunk(f"{request.model}.", (3,), (-0.2,), "stop")

    async def _meet(self, request: EngineRequest) -> str:
        self.asked[request.model] += 1
        await asyncio.sleep(0)  # no engine answers within no time at all
        fault = self.faults.get(request.model, "")
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in STATUS:
            raise EngineError("engine refused", STATUS[fault])
        return fault


class ScriptedGateway:
    """The application, what it writes, and a client of it. ``state`` is every policy's rollout."""

    def __init__(
        self,
        folder: Path,
        state: Rollout | None = None,
        engine_is: ScriptedEngine | None = None,
        **gateway: Any,
    ) -> None:
        values: dict[str, Any] = {"feedback_secret": "x" * 16, **gateway}
        sections = {name: values.pop(name) for name in SECTIONS if name in values}
        settings = s.Settings(
            state_dir=folder,
            kafka=s.Kafka(bootstrap=f"127.0.0.1:{free_port()}"),
            gateway=msgspec.convert(values, s.Gateway),
            **sections,
        )
        self.engine = engine_is or ScriptedEngine()
        self.states: Callable[[str], Rollout | None] = lambda _policy: state
        running = assemble(settings)
        parts = msgspec.structs.replace(running.gateway, engine=self.engine, rollout=self._state)
        self.running: Running = msgspec.structs.replace(running, gateway=parts)
        app = make_app(self.running)
        self.shadows: Shadows = app.state.shadows
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)

    def _state(self, policy: str) -> Rollout | None:
        return self.states(policy)

    async def ask(
        self, user: str = "u", headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        message = {"role": "user", "content": "hello"}
        body = {"model": "assistant", "messages": [message], "user": user, **more}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def decisions(self) -> list[Decision]:
        return [msgspec.json.decode(value, type=Decision) for value in self._values("decisions")]

    def audit(self) -> list[AuditRecord]:
        return [msgspec.json.decode(value, type=AuditRecord) for value in self._values("audit")]

    def _values(self, topic: str) -> list[bytes]:
        records = [entry.record for entry in self.running.outbox.pending(10_000)]
        return [record.value for record in records if record and record.topic.name == topic]

    async def close(self) -> None:
        await self.client.aclose()
        await self.engine.close()
        self.running.outbox.close()
