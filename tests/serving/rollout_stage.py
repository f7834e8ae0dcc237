"""A stage for rollout tests: a log on the real broker, an engine, and releases to judge."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import msgspec
import pytest
from aiohttp import web
from kafka import KafkaProducer

from console.local_broker import free_port
from contracts.audit import AuditChain
from contracts.broker import make_producer, send_and_wait
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.errors import EngineError
from contracts.events import (
    BASE_VERSION,
    AuditRecord,
    Release,
    Rollout,
    Sampling,
)
from contracts.events import Event as AnyEvent
from contracts.evidence import ReleaseEvidence, write_evidence
from contracts.ids import NewId, derived_id
from contracts.manifest import Manifest, hash_files, sign_manifest, write_manifest
from contracts.settings import Engine as EngineSettings
from contracts.settings import Gate, Kafka, Policy, Settings, to_environment
from contracts.settings.rollout import Rollout as Rules
from contracts.settings.rollout import Step
from contracts.signing import signing_key
from contracts.topics import AUDIT, RELEASES, REWARDS, ROLLOUTS
from serving.assignment import assign, assign_shadow
from serving.engine import Engine, EngineAnswer, EngineChunk, EngineRequest
from serving.rollout_adapters import Adapters
from serving.rollout_controller import control
from serving.rollout_log import RolloutLog
from serving.rollout_loop import RolloutLoop
from serving.rollout_status import RolloutStatus
from serving.weight_swap import Weights
from tests.signing_keys import new_key
from tests.stream_events import reward, safety
from tests.topic_log import events
from tests.until import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HALF = Step(weight=0.5, min_canary_requests=20, min_canary_users=10, max_wait_seconds=120)
RULES = Rules(
    steps=(HALF,),
    min_rewards=15,
    reward_margin=2.0,
    cooldown_seconds=0.0,
    publish_seconds=0.05,
)
"""One step, and rewards that decide nothing: few of them never can."""

NO_GATE = Gate(mode="off")
"""These versions hold no evidence; tests/serving/test_gate_in_rollout.py has some that do."""


class TinyEngine:
    """An engine in memory: it keeps a table of adapters and answers "ok"."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.asked: list[str] = []
        self.loads: list[str] = []
        self.under_way: dict[str, int] | None = {}
        self.full = ""
        self.swaps: list[tuple[Weights, Weights]] = []
        self.up = True

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        await self._alive()
        if request.model not in self.adapters and request.model != BASE_VERSION:
            raise EngineError(f"no model {request.model}", 404)
        self.asked.append(request.model)
        return EngineAnswer("ok", (1,), (2,), (-0.5,), "stop")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        answer = await self.complete(request)
        yield EngineChunk(answer.text, answer.token_ids, answer.logprobs, "stop", (1,))

    async def load_adapter(self, name: str, path: Path) -> None:
        await self._alive()
        if self.adapters.get(name, str(path)) != str(path):
            raise EngineError(f"{name} has already been loaded", 400)
        if not (path / "adapter_model.safetensors").exists():
            raise EngineError(f"no adapter at {path}", 404)
        self.adapters[name] = str(path)
        self.loads.append(name)

    async def unload_adapter(self, name: str) -> None:
        await self._alive()
        if (self.under_way or {}).get(name):
            raise EngineError(f"answers of {name} are under way", 409)
        self.adapters.pop(name, None)

    async def models(self) -> dict[str, str]:
        await self._alive()
        return {BASE_VERSION: "", **self.adapters}

    async def running(self) -> dict[str, int] | None:
        await self._alive()
        return self.under_way

    async def weights(self) -> str:
        await self._alive()
        return self.full

    async def swap_weights(self, to: Weights, back: Weights) -> None:
        await self._alive()
        self.swaps.append((to, back))
        self.full = to.version

    async def healthy(self) -> bool:
        return self.up

    async def close(self) -> None:
        return None

    def restart(self) -> None:
        self.adapters = {}
        self.full = ""

    async def _alive(self) -> None:
        await asyncio.sleep(0)
        if not self.up:
            raise EngineError("nothing listens there")


class CrashError(BaseException):
    """The end of a controller, at a point that a test chose."""


class CrashingLog(RolloutLog):
    """A log whose controller dies at the state of number ``point``, counted from 1."""

    point = 0
    written = False

    def publish(self, state: Rollout, trace: Mapping[str, str]) -> None:
        self.point -= 1
        if self.point == 0 and not self.written:
            raise CrashError
        super().publish(state, trace)
        if self.point == 0:
            raise CrashError


class Stage:
    """Broker, engine and files of one test, and what users and the learner would write."""

    def __init__(
        self,
        kafka: Kafka,
        directory: Path,
        new_id: NewId,
        rules: Rules = RULES,
        gate: Gate = NO_GATE,
    ) -> None:
        self.kafka = kafka
        self.engine = TinyEngine()
        self.new_id = new_id
        self.directory = directory
        self.versions = directory / "state" / "versions" / "desk"
        self.settings = Settings(
            state_dir=directory / "state",
            kafka=kafka,
            rollout=rules,
            policy=Policy(name="desk", model=str(directory), judge_share=0.999),
            engine=EngineSettings(timeout_seconds=30),
            gate=gate,
        )
        self.key = signing_key(new_key(self.settings.state_dir))
        self._producer: KafkaProducer | None = None
        self._sequence = 0

    def crashing_controller(self, point: int, *, written: bool) -> Thread:
        """Start a controller that dies at the state of that number, before or after writing it."""
        clock = SystemClock()
        chain = AuditChain("rollout", clock, self.new_id)
        log = CrashingLog(self.kafka, "desk", chain)
        log.point, log.written = point, written
        status = RolloutStatus(self.settings.state_dir, clock)
        adapters = Adapters(self.engine, self.settings, clock, status.stopping)
        loop = RolloutLoop(self.settings, log, adapters, status, clock, self.new_id)

        def run() -> None:
            try:
                loop.run()
            except CrashError:
                log.close()
                adapters.close()

        thread = Thread(target=run, daemon=True)
        thread.start()
        return thread

    @contextmanager
    def controller(self) -> Iterator[RolloutStatus]:
        clock = SystemClock()
        status = RolloutStatus(self.settings.state_dir, clock)
        arguments = (self.settings, self.engine, status, clock, self.new_id)
        thread = Thread(target=control, args=arguments)
        thread.start()
        try:
            yield status
        finally:
            status.stopping.set()
            thread.join(30)
            assert not thread.is_alive()

    def send(self, topic: Any, event: AnyEvent) -> None:
        self._producer = self._producer or make_producer(self.kafka, "test")
        record = encode(topic, event, source="test", trace={"traceparent": TRACEPARENT})
        send_and_wait(self._producer, self.kafka, record)

    def version(
        self,
        policy: str = "desk",
        evidence: ReleaseEvidence | None = None,
        form: Literal["lora", "full"] = "lora",
        base: str = "tiny",
    ) -> tuple[Path, str]:
        self._sequence += 1
        path = self.versions / f"version-{self._sequence}"
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_bytes(b"weights %d" % self._sequence)
        if evidence is not None:
            write_evidence(path, evidence)
        manifest = Manifest(
            policy=policy,
            sequence=self._sequence,
            form=form,
            base=base,
            parent=BASE_VERSION,
            as_of=NOW,
            newest_feedback_time=NOW,
            trained_on=(),
            samples=1,
            config={},
            code="test",
            files=hash_files(path),
        )
        version = write_manifest(path, manifest)
        sign_manifest(path, self.key)
        return path, version

    def release(
        self, path: Path | str, version: str, form: Literal["lora", "full"] = "lora"
    ) -> str:
        event = Release(
            id=derived_id("release", version),
            time=NOW,
            policy="desk",
            version=version,
            sequence=self._sequence,
            parent=BASE_VERSION,
            form=form,
            location=str(path),
            newest_feedback_time=NOW,
        )
        self.send(RELEASES, event)
        return version

    def released(self) -> str:
        return self.release(*self.version())

    def states(self) -> list[Rollout]:
        return events(self.kafka, ROLLOUTS, Rollout)

    def requests(self) -> int:
        """Return how many requests the newest state has counted."""
        return sum(self.states()[-1].evidence.requests.values())

    def state(self, phase: str, version: str = "") -> Rollout:
        """Wait for a phase, with that version as the candidate or the stable one."""

        def found() -> Rollout | None:
            states = self.states()
            last = states[-1] if states else None
            if last is None or last.phase != phase:
                return None
            names = {last.stable.version, last.candidate.version if last.candidate else ""}
            return last if not version or version in names or last.judged == version else None

        return until(f"phase {phase}", found)

    def audits(self) -> list[AuditRecord]:
        return events(self.kafka, AUDIT, AuditRecord)

    def serve(
        self,
        state: Rollout,
        users: range,
        *,
        bad_canary: bool = False,
        rewards: tuple[float, float] | None = (0.5, 0.5),
    ) -> int:
        """Write what streams would write for one request of each user; return canary requests.

        ``rewards`` are those of (canary, stable).
        """
        count = 0
        for number in users:
            user = f"user-{number}"
            given = assign(state, "desk", user)
            canary = given.arm == "canary"
            count += canary
            decision = f"decision-{state.rollout_id}-{number}"
            bad, now = canary and bad_canary, SystemClock().now()
            self.send(REWARDS, safety(decision, user, given, violation=bad, decided_at=now))
            if rewards is not None:
                value = rewards[0 if canary else 1]
                self.send(REWARDS, reward(decision, value, user, given, decided_at=now))
        return count

    def copy(self, state: Rollout, users: range, **changes: Any) -> None:
        """Write what streams would write for one unseen copy of each user's question."""
        given, now = assign_shadow(state, "desk"), SystemClock().now()
        for number in users:
            decision = f"copy-{state.rollout_id}-{number}"
            event = safety(decision, f"user-{number}", given, decided_at=now, **changes)
            self.send(REWARDS, event)

    def promote(self) -> str:
        version = self.released()
        self.serve(self.state("canary", version), range(80))
        self.state("promoted", version)
        return version


async def check_engine(engine: Engine, path: Path, other: Path) -> None:
    """What every engine must do with adapters, ours of the tests included."""
    await engine.load_adapter("a", path)
    await engine.load_adapter("a", path)
    with pytest.raises(EngineError):
        await engine.load_adapter("a", other)
    with pytest.raises(EngineError):
        await engine.load_adapter("b", path.parent / "not-there")
    assert await engine.models() == {BASE_VERSION: "", "a": str(path)}
    await engine.unload_adapter("a")
    await engine.unload_adapter("a")
    request = EngineRequest("a", [{"role": "user", "content": "x"}], [], Sampling(), {})
    with pytest.raises(EngineError):
        await engine.complete(request)
    answer = await engine.complete(msgspec.structs.replace(request, model=BASE_VERSION))
    assert len(answer.token_ids) == len(answer.logprobs) > 0
    assert await engine.healthy()


class EngineServer:
    """The tests' engine behind the HTTP routes that `HttpEngine` calls."""

    def __init__(self, engine: TinyEngine) -> None:
        self.engine = engine
        self.port = free_port()
        self._ready = Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> EngineServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _request: web.Request) -> web.Response:
        models = await self.engine.models()
        return web.json_response(
            {
                "data": [
                    {"id": n, "root": p, "parent": "base" if p else None} for n, p in models.items()
                ]
            }
        )

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            await self.engine.load_adapter(body["lora_name"], Path(body["lora_path"]))
        except EngineError as error:
            return web.json_response({"error": {"message": str(error)}}, status=error.status)
        return web.Response(text="loaded")

    async def _unload(self, request: web.Request) -> web.Response:
        await self.engine.unload_adapter((await request.json())["lora_name"])
        return web.Response(text="unloaded")

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            asked = EngineRequest(body["model"], body["messages"], [], Sampling(), {})
            answer = await self.engine.complete(asked)
        except EngineError as error:
            return web.json_response({"error": {"message": str(error)}}, status=error.status)
        choice = {
            "message": {"content": answer.text},
            "logprobs": {"content": [{"logprob": value} for value in answer.logprobs]},
            "token_ids": answer.token_ids,
            "finish_reason": "stop",
        }
        return web.json_response({"choices": [choice], "prompt_token_ids": [1]})


@contextmanager
def process(stage: Stage, port: int) -> Iterator[subprocess.Popen[bytes]]:
    settings = msgspec.structs.replace(
        stage.settings, engine=msgspec.structs.replace(stage.settings.engine, port=port)
    )
    child = subprocess.Popen(
        [sys.executable, "-c", "from serving.rollout_controller import main; main()"],
        env=os.environ | to_environment(settings),
        stderr=(stage.directory / "rollout.log").open("ab"),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)
