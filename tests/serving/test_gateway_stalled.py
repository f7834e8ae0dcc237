"""Clients that ask and do not read, or leave: nobody else loses a place, and a decision stays."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from contracts.clock import SystemClock
from contracts.settings import Engine
from serving import body, chat_stream, client_send
from serving.client_send import ClientSend, ClientStalledError, Server
from serving.engine import EngineChunk, EngineRequest
from serving.gateway_process import make_app
from tests.serving.scripted_gateway import ScriptedEngine, ScriptedGateway

PLACES = 2
LONG = 30.0


class EndlessEngine(ScriptedEngine):
    """Its streams never end; ``open`` are those that nobody closed."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.open = 0
        self._pause = pause

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.open += 1
        try:
            while True:
                await asyncio.sleep(self._pause)
                yield EngineChunk("word " * 200, (1,), (-0.1,))
        finally:
            self.open -= 1


@pytest.fixture
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may keep the gateway waiting for a moment only."""
    for module in (client_send, chat_stream):
        monkeypatch.setattr(module, "SEND_SECONDS", 0.2)


@asynccontextmanager
async def listening(gateway: ScriptedGateway) -> AsyncIterator[Server]:
    """Serve a gateway on a real port, with little room for what a client leaves unread."""
    app = make_app(gateway.running)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    server = Server(uvicorn.Config(served, port=0, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve())
    await until_true(lambda: server.started)
    server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        yield server
    finally:
        server.force_exit = server.should_exit = True
        await task
        await gateway.close()


async def until_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - what other tasks do sets no event
            await asyncio.sleep(0.01)


def port_of(server: Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


def client_that_never_reads(server: Server, path: str, sent: bytes, length: int) -> socket.socket:
    """Send the head of a request and a part of its body; return the open connection."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port_of(server)))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    client.sendall(head.encode() + sent)
    return client


def chat(**more: Any) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    return json.dumps({"model": "assistant", "messages": messages, **more}).encode()


async def test_streams_that_nobody_reads_lose_their_places_and_their_connections(
    tmp_path: Path, shortly: None
) -> None:
    engine = EndlessEngine()
    gateway = ScriptedGateway(tmp_path, None, engine, max_concurrent=PLACES)
    async with listening(gateway) as server:
        ask = chat(stream=True)
        clients = [
            client_that_never_reads(server, "/v1/chat/completions", ask, len(ask))
            for _ in range(PLACES)
        ]
        await until_true(gateway.running.gateway.chat_room.locked)
        assert (await gateway.ask()).status_code == 429
        await until_true(lambda: len(gateway.decisions()) == PLACES)
        assert (await gateway.ask()).status_code == 200
        assert {one.finish_reason for one in gateway.decisions()[:PLACES]} == {"disconnected"}
        assert engine.open == 0
        assert gateway.running.gateway.breakers.open_versions() == ()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            await until_true(lambda: not server.server_state.connections)
        for client in clients:
            client.close()


async def test_a_client_that_leaves_a_stream_still_leaves_a_decision(tmp_path: Path) -> None:
    engine = EndlessEngine(pause=0.01)
    gateway = ScriptedGateway(tmp_path, None, engine)
    async with listening(gateway) as server:
        url = f"http://127.0.0.1:{port_of(server)}/v1/chat/completions"
        async with (
            httpx.AsyncClient(timeout=LONG) as client,
            client.stream("POST", url, content=chat(stream=True)) as answer,
        ):
            async for text in answer.aiter_text():
                if "word" in text:
                    break
        await until_true(lambda: bool(gateway.decisions()))
        [decision] = gateway.decisions()
        assert decision.id == answer.headers["x-headrace-decision-id"]
        assert decision.finish_reason == "disconnected"
        assert len(decision.token_ids) == len(decision.logprobs) > 0
        assert decision.error is None
        await until_true(lambda: engine.open == 0)


async def test_a_stream_that_is_read_slowly_for_ever_ends_at_its_deadline(
    tmp_path: Path, shortly: None
) -> None:
    engine = EndlessEngine(pause=0.01)
    gateway = ScriptedGateway(tmp_path, None, engine, engine=Engine(timeout_seconds=0.2))
    async with listening(gateway) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        ask = chat(stream=True)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: {len(ask)}\r\n\r\n"
        )
        writer.write(head.encode() + ask)
        async with asyncio.timeout(LONG):
            assert b"[DONE]" not in await reader.read()
        writer.close()
        assert [one.finish_reason for one in gateway.decisions()] == ["disconnected"]
        assert engine.open == 0


async def test_answers_that_pile_up_unread_on_one_connection_keep_no_place(
    tmp_path: Path, shortly: None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()
    engine.says = ("word " * 50_000,)
    gateway = ScriptedGateway(tmp_path, None, engine, max_concurrent=1)
    async with listening(gateway) as server:
        ask = chat()
        client = client_that_never_reads(server, "/v1/chat/completions", ask, len(ask))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: {len(ask)}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall((head.encode() + ask) * 5)
        await until_true(lambda: "did not read its answer" in caplog.text)
        assert not gateway.running.gateway.chat_room.locked()
        client.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
async def test_a_body_that_does_not_come_keeps_its_place_for_a_while_only(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    gateway = ScriptedGateway(tmp_path, None, max_concurrent=1)
    parts = gateway.running.gateway
    room = parts.feedback_room if path == "/v1/feedback" else parts.chat_room
    async with listening(gateway) as server:
        client = client_that_never_reads(server, path, b"{", 100)
        await until_true(room.locked)
        await until_true(lambda: not room.locked())
        client.settimeout(LONG)
        assert b" 408 " in await asyncio.to_thread(client.recv, 100)
        client.close()


async def test_the_time_that_a_client_held_up_is_measured(shortly: None) -> None:
    async def send(_: object) -> None:
        await asyncio.Event().wait()

    to_client = ClientSend(send, SystemClock())
    with pytest.raises(ClientStalledError):
        await to_client({"type": "http.response.body"})
    assert to_client.waited > 0.0


async def test_time_that_the_client_held_a_stream_up_is_not_charged(tmp_path: Path) -> None:
    gateway = ScriptedGateway(
        tmp_path, None, engine=Engine(timeout_seconds=0.1), breaker_failures=1
    )
    gateway.engine.faults = {"base": "run-over"}
    app = make_app(gateway.running)

    async def held_up(scope: Scope, receive: Receive, send: Send) -> None:
        async def late(message: Message) -> None:
            await asyncio.sleep(0.1)
            await send(message)

        await app(scope, receive, late)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(held_up)) as client:
        await client.post("http://gateway/v1/chat/completions", content=chat(stream=True))
    [decision] = gateway.decisions()
    assert (decision.error or "").startswith("stable (not charged): base: broke off: ")
    assert gateway.running.gateway.breakers.open_versions() == ()
    await gateway.close()
