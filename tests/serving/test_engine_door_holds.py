"""The door holds, counts and renames answers as told, and lets them go by itself in the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from serving.door.engine_door import MAX_HELD, EngineDoor

ADMIN = "admin"


class Inside:
    """An engine behind a door: it notes what reaches it and answers once it is let."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, Any]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = dict(scope["headers"])
        assert int(headers.get(b"content-length", len(body))) == len(body)
        self.reached.append((scope["path"], json.loads(body)))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def call(
    door: EngineDoor, path: str, body: Any, key: str = "", method: str = "POST"
) -> tuple[int, Any]:
    """Return (status, JSON body or None) of one request."""
    raw = json.dumps(body).encode()
    headers = [(b"content-length", str(len(raw)).encode())]
    headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
    seen: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        seen.append(message)

    await door({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    return seen[0]["status"], json.loads(seen[1]["body"] or b"null")


async def generate(door: EngineDoor, model: str, key: str = "") -> int:
    return (await call(door, "/v1/chat/completions", {"model": model, "n": 1}, key))[0]


async def hold(door: EngineDoor, seconds: float) -> None:
    assert (await call(door, "/headrace/hold", {"seconds": seconds}, ADMIN))[0] == 200


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_begins_during_a_hold_waits_until_it_is_let_go() -> None:
    inside = Inside()
    door = EngineDoor(inside, "", ADMIN, faults=False)
    await hold(door, 60)
    waiting = asyncio.create_task(generate(door, "base"))
    await settle()
    assert inside.reached == []
    assert (await call(door, "/headrace/running", None, ADMIN, "GET"))[1] == {"running": {}}
    assert await generate(door, "probe", ADMIN) == 200  # the admin's own question passes
    await call(door, "/headrace/hold", None, ADMIN, "DELETE")
    assert await waiting == 200
    assert [body["model"] for _, body in inside.reached] == ["probe", "base"]


async def test_a_hold_that_nobody_ends_ends_by_itself() -> None:
    door = EngineDoor(Inside(), "", ADMIN, faults=False)
    await hold(door, 0.05)
    assert await generate(door, "base") == 200


async def test_a_hold_that_is_renewed_holds_those_who_wait_already() -> None:
    inside = Inside()
    door = EngineDoor(inside, "", ADMIN, faults=False)
    await hold(door, 60)
    waiting = asyncio.create_task(generate(door, "base"))
    await settle()
    await hold(door, 50)
    await settle()
    assert inside.reached == []
    await call(door, "/headrace/hold", None, ADMIN, "DELETE")
    assert await waiting == 200


async def test_so_many_wait_in_a_hold_and_no_more() -> None:
    door = EngineDoor(Inside(), "", ADMIN, faults=False)
    await hold(door, 60)
    waiting = [asyncio.create_task(generate(door, "base")) for _ in range(MAX_HELD)]
    await settle()
    assert await generate(door, "base") == 503
    await call(door, "/headrace/hold", None, ADMIN, "DELETE")
    assert set(await asyncio.gather(*waiting)) == {200}


async def test_a_hold_without_an_end_is_refused() -> None:
    door = EngineDoor(Inside(), "", ADMIN, faults=False)
    for seconds in (0, -1, 601, True, "60", None):
        assert (await call(door, "/headrace/hold", {"seconds": seconds}, ADMIN))[0] == 400


async def test_full_weights_are_asked_by_their_version_and_by_no_other_name() -> None:
    inside = Inside()
    door = EngineDoor(inside, "", ADMIN, faults=False)
    assert (await call(door, "/headrace/weights", {"version": "f" * 64}, ADMIN))[0] == 200
    assert await generate(door, "f" * 64) == 200
    assert inside.reached[-1] == ("/v1/chat/completions", {"model": "base", "n": 1})
    assert [await generate(door, name) for name in ("base", "a" * 64)] == [404, 404]
    await call(door, "/headrace/weights", {"version": ""}, ADMIN)
    assert [await generate(door, name) for name in ("base", "f" * 64)] == [200, 200]


async def test_an_answer_cannot_begin_while_its_adapter_leaves() -> None:
    inside = Inside()
    door = EngineDoor(inside, "", ADMIN, faults=False)
    inside.may_answer.clear()
    unload = {"lora_name": "old"}
    leaving = asyncio.create_task(call(door, "/v1/unload_lora_adapter", unload, ADMIN))
    await settle()
    assert await generate(door, "old") == 404
    inside.may_answer.set()
    assert (await leaving)[0] == 200
    assert inside.reached == [("/v1/unload_lora_adapter", unload)]
