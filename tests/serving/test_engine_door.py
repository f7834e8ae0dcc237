"""The engine's door, on every engine: the keys, answers under way, faults for drills."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from console.child_environment import ENGINE_ADMIN_KEY, ENGINE_KEY
from console.stack import resolve, stack_programs
from console.waiting import Shown
from contracts.errors import EngineError
from contracts.events import Sampling
from contracts.settings import Engine, Policy, Settings, load_settings
from serving.door.engine_door import EngineDoor
from serving.engine import EngineRequest
from serving.gateway_process import assemble
from serving.http_engine import HttpEngine
from tests.serving.http_server import ADMIN_KEY, Server
from tests.until import until

LONG = Sampling(temperature=0.0, max_tokens=200)
CHAT = b'{"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}'
CLOSED = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/collective_rpc"),
    ("POST", "/sleep"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/headrace/running"),
    ("POST", "/headrace/faults"),
    ("GET", "/openapi.json"),
    ("GET", "/no/such/path"),
]


def asks(text: str, model: str = "base") -> EngineRequest:
    return EngineRequest(model, [{"role": "user", "content": text}], [], LONG)


def idle(engine: Server) -> bool:
    """Whether no answer is under way."""
    _, content = engine.request("GET", "/headrace/running", key=ADMIN_KEY)
    return bool(json.loads(content) == {"running": {}})


async def until_running(engine: HttpEngine, wanted: dict[str, int]) -> None:
    """Wait until these answers are under way, by model."""
    deadline = asyncio.get_running_loop().time() + 30.0
    while (found := await engine.running()) != wanted:
        assert asyncio.get_running_loop().time() < deadline, f"{found} under way, not {wanted}"
        await asyncio.sleep(0.01)


@pytest.fixture
def faults(any_engine: Server) -> Iterator[Server]:
    yield any_engine
    any_engine.request("DELETE", "/headrace/faults", key=ADMIN_KEY)


def set_fault(engine: Server, **fault: Any) -> tuple[int, Any]:
    body = json.dumps(fault).encode()
    response, content = engine.request("POST", "/headrace/faults", body, ADMIN_KEY)
    return response.status, json.loads(content)


@pytest.mark.parametrize("key", ["", "wrong", ADMIN_KEY + "x", ADMIN_KEY[:-1]])
@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_changes_the_engine_needs_the_admin_key(
    any_engine: Server, method: str, path: str, key: str
) -> None:
    response, content = any_engine.request(method, path, b"{}", key)
    assert response.status == 403
    assert b"admin key" in content


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics"])
def test_without_an_engine_key_anyone_may_read(any_engine: Server, path: str) -> None:
    any_engine.get(path)


async def test_what_the_stack_gives_the_gateway_generates_and_cannot_load_an_adapter(
    any_engine: Server,
    tiny_adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENGINE_ADMIN_KEY, ADMIN_KEY)
    given = Settings(
        state_dir=tmp_path,
        engine=Engine(kind="transformers", admin_key=ADMIN_KEY),
        policy=Policy(model="/m"),
    )
    settings = resolve(given, Shown(None))
    programs = {p.name: p.environment for p in stack_programs(given, settings, 1)}
    its_settings = load_settings(
        environment={**programs["gateway"], "HEADRACE_ENGINE__URL": any_engine.url}
    )
    engine = assemble(its_settings).gateway.engine
    assert (await engine.complete(asks("hello"))).finish_reason == "stop"
    with pytest.raises(EngineError, match="admin key") as refused:
        await engine.load_adapter("intruder", tiny_adapters[0])
    assert refused.value.status == 403
    await engine.close()
    assert await HttpEngine(any_engine.url, 5.0).models() == {"base": ""}


def test_only_controller_and_engine_get_the_admin_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings(
        state_dir=tmp_path,
        engine=Engine(kind="transformers", key="k" * 32),
        policy=Policy(model="/m"),
    )
    settings = resolve(given, Shown(None))
    assert len(settings.engine.admin_key) == 64
    programs = stack_programs(given, settings, 1)
    holders = [p.name for p in programs if ENGINE_ADMIN_KEY in p.environment]
    assert holders == ["engine", "rollout"]
    holders = [p.name for p in programs if ENGINE_KEY in p.environment]
    assert holders == ["engine", "rollout", "gateway"]


async def test_an_adapter_is_unloaded_only_when_its_answers_are_out(
    admin: HttpEngine, faults: Server, tiny_adapters: tuple[Path, Path]
) -> None:
    await admin.load_adapter("busy", tiny_adapters[0])
    set_fault(faults, model="busy", delay_seconds=60.0)  # under way until the fault is cleared
    async with aclosing(admin.stream(asks("count", "busy"))) as chunks:
        answer = asyncio.ensure_future(anext(chunks))
        await until_running(admin, {"busy": 1})
        with pytest.raises(EngineError, match="1 answers of busy are under way") as refused:
            await admin.unload_adapter("busy")
        assert refused.value.status == 409
        assert await admin.running() == {"busy": 1}
        assert "busy" in await admin.models()
        faults.request("DELETE", "/headrace/faults", key=ADMIN_KEY)
        await answer
    await until_running(admin, {})
    await admin.unload_adapter("busy")
    assert await admin.models() == {"base": ""}


def test_a_fault_is_for_one_model_and_listed_until_it_is_cleared(faults: Server) -> None:
    status, content = set_fault(faults, model="other", status=500)
    assert status == 200
    fault = {"model": "other", "delay_seconds": 0.0, "status": 500, "cut_after_bytes": None}
    assert content == {"faults": [fault]}
    assert faults.request("POST", "/v1/chat/completions", CHAT)[0].status == 200
    set_fault(faults, model="base", status=503)
    assert faults.request("POST", "/v1/chat/completions", CHAT)[0].status == 503
    faults.request("DELETE", "/headrace/faults?model=base", key=ADMIN_KEY)
    assert faults.request("POST", "/v1/chat/completions", CHAT)[0].status == 200
    _, listed = faults.request("GET", "/headrace/faults", key=ADMIN_KEY)
    assert json.loads(listed) == {"faults": [fault]}


async def test_a_delayed_model_meets_the_clients_deadline(faults: Server) -> None:
    await asyncio.to_thread(set_fault, faults, model="base", delay_seconds=600.0)
    engine = HttpEngine(faults.url, timeout_seconds=0.3)
    with pytest.raises(EngineError, match="no answer within"):
        await engine.complete(asks("hello"))
    await engine.close()
    await asyncio.to_thread(until, "the end of an answer whose client left", lambda: idle(faults))


async def test_a_delay_ends_when_its_fault_is_cleared(faults: Server) -> None:
    await asyncio.to_thread(set_fault, faults, model="base", delay_seconds=600.0)
    engine = HttpEngine(faults.url, timeout_seconds=60.0)
    asked = asyncio.create_task(engine.complete(asks("hello")))
    await asyncio.to_thread(until, "an answer under way", lambda: not idle(faults))
    await asyncio.to_thread(faults.request, "DELETE", "/headrace/faults", key=ADMIN_KEY)
    assert (await asked).finish_reason in ("stop", "length")
    await engine.close()


async def test_a_cut_answer_is_an_error_at_the_client(faults: Server) -> None:
    await asyncio.to_thread(set_fault, faults, model="base", cut_after_bytes=1500)
    engine = HttpEngine(faults.url, timeout_seconds=30.0)
    seen = 0
    with pytest.raises(EngineError):
        async for _ in engine.stream(asks("count")):
            seen += 1
    assert seen > 0
    await asyncio.to_thread(set_fault, faults, model="base", cut_after_bytes=0)
    with pytest.raises(EngineError):
        await engine.complete(asks("hello"))
    await engine.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({}, "give an object with model"),
        ({"model": ""}, "1 to 200"),
        ({"model": "m", "delay": 1}, "delay_seconds"),
        ({"model": "m", "delay_seconds": 601}, "0 to 600"),
        ({"model": "m", "delay_seconds": True}, "0 to 600"),
        ({"model": "m", "status": 200}, "400 to 599"),
        ({"model": "m", "cut_after_bytes": -1}, "0 to 1048576"),
    ],
)
def test_a_fault_out_of_bounds_is_refused(tiny_engine: Server, fault: Any, said: str) -> None:
    status, content = set_fault(tiny_engine, **fault)
    assert status == 400
    assert said in content["error"]["message"]


def test_there_is_room_for_a_bounded_number_of_faults(tiny_engine: Server) -> None:
    answers = [set_fault(tiny_engine, model=f"m{number}")[0] for number in range(17)]
    tiny_engine.request("DELETE", "/headrace/faults", key=ADMIN_KEY)
    assert answers == [200] * 16 + [400]


async def status_of(door: EngineDoor, method: str, path: str, key: str = "") -> int:
    """Return the status of a request without a body, 200 where the door lets it through."""
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    seen: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        seen.append(message)

    await door(scope, receive, send)
    return int(seen[0]["status"])


async def lets_through(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_with_an_engine_key_strangers_see_health_alone() -> None:
    door = EngineDoor(lets_through, "engine", "admin", faults=False)
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
    ):
        keys = ("", "wrong", "engine", "admin")
        assert [await status_of(door, method, path, key) for key in keys] == [403, 403, 200, 200]
    assert await status_of(door, "GET", "/health") == 200


async def test_without_an_admin_key_nobody_changes_the_engine() -> None:
    door = EngineDoor(lets_through, "engine", "", faults=True)
    for key in ("", "engine"):
        assert await status_of(door, "POST", "/v1/load_lora_adapter", key) == 403


async def test_faults_are_off_unless_the_engine_was_started_with_them() -> None:
    door = EngineDoor(lets_through, "", "admin", faults=False)
    assert await status_of(door, "GET", "/headrace/faults", "admin") == 404


async def test_a_socket_needs_the_admin_key() -> None:
    door = EngineDoor(lets_through, "", "admin", faults=False)
    seen: list[Any] = []

    async def send(message: Any) -> None:
        seen.append(message)

    async def receive() -> Any:
        raise AssertionError

    await door({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert seen == [{"type": "websocket.close", "code": 1008}]
