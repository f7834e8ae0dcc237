"""Chat requests pass the router by; a fault in them is answered as any other, and logged."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.chat_first import CHAT, ChatFirst


async def by_router(request: Request) -> Response:
    return PlainTextResponse(f"router: {request.method}")


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["query_string"] == b"late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["query_string"]:
        raise ValueError("4111")
    await PlainTextResponse("straight")(scope, receive, send)


def fault(_: Request, error: Exception) -> Response:
    return PlainTextResponse(type(error).__name__, 500)


@pytest.fixture
def app() -> ChatFirst:
    routes = [Route(CHAT, by_router, methods=["GET"]), Route("/other", by_router, methods=["POST"])]
    return ChatFirst(chat, Starlette(routes=routes), fault)


async def ask(app: ChatFirst, method: str, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path)


async def test_a_post_of_a_chat_goes_straight_and_all_else_by_the_router(app: ChatFirst) -> None:
    assert (await ask(app, "POST", CHAT)).text == "straight"
    assert (await ask(app, "GET", CHAT)).text == "router: GET"
    assert (await ask(app, "POST", "/other")).text == "router: POST"
    assert (await ask(app, "POST", f"{CHAT}/more")).status_code == 404


async def test_a_fault_is_answered_and_raised_for_the_log(app: ChatFirst) -> None:
    answer = await ask(app, "POST", f"{CHAT}?early")
    assert (answer.status_code, answer.text) == (500, "ValueError")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        with pytest.raises(ValueError, match="4111"):
            await client.post(f"{CHAT}?late")
