"""Full weights are swapped under streams: no answer is of two versions, and there is a way back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import EngineError
from contracts.events import Sampling
from serving.engine import EngineRequest
from serving.http_engine import HttpEngine
from serving.weight_swap import Deadlines, Weights
from tests.serving.http_server import ADMIN_KEY, Server

VERSION = "f" * 64
GREEDY = Sampling(temperature=0.0, max_tokens=24)
QUICK = Deadlines(drain=60.0, pause=30.0, reload=120.0, reset=30.0, resume=30.0, probe=60.0)


def asks(model: str) -> EngineRequest:
    return EngineRequest(model, [{"role": "user", "content": "count"}], [], GREEDY)


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights: it says something else."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("other")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.add_(torch.randn_like(tensor), alpha=0.5 * float(tensor.std()))
    model.save_pretrained(path)
    return path


@pytest.fixture
async def plain(any_engine: Server) -> AsyncIterator[HttpEngine]:
    client = HttpEngine(any_engine.url, timeout_seconds=120.0)
    yield client
    await client.close()


async def test_full_weights_swap_under_streams_and_back(
    admin: HttpEngine, plain: HttpEngine, tiny_model: Path, other_model: Path
) -> None:
    base, other = Weights("", tiny_model), Weights(VERSION, other_model)
    before = (await plain.complete(asks("base"))).text
    heard: dict[str, set[str]] = {"base": set(), VERSION: set()}
    model, stopped, answered = "base", False, asyncio.Event()

    async def stream() -> None:
        while not stopped:
            asked = model
            try:
                chunks = [chunk async for chunk in plain.stream(asks(asked))]
            except EngineError as error:
                assert error.status == 404, error  # held, and by then of another name
                await asyncio.sleep(0.01)
                continue
            assert chunks[-1].finish_reason in ("stop", "length")
            heard[asked].add("".join(chunk.text for chunk in chunks))
            answered.set()

    streams = [asyncio.create_task(stream()) for _ in range(4)]
    async with asyncio.timeout(60.0):
        await answered.wait()
    await admin.swap_weights(other, base, QUICK)
    model = VERSION
    assert await admin.weights() == VERSION
    after = (await plain.complete(asks(VERSION))).text
    with pytest.raises(EngineError, match="does not exist"):
        await plain.complete(asks("base"))
    stopped = True
    await asyncio.gather(*streams)
    await admin.swap_weights(base, other, QUICK)
    assert await admin.weights() == ""
    assert (await plain.complete(asks("base"))).text == before
    assert after != before
    assert heard["base"] == {before}
    assert heard[VERSION] <= {after}


async def test_weights_that_cannot_be_loaded_leave_those_before(
    admin: HttpEngine, plain: HttpEngine, tiny_model: Path, tmp_path: Path
) -> None:
    before = (await plain.complete(asks("base"))).text
    with pytest.raises(EngineError, match="the engine serves the base model again"):
        await admin.swap_weights(Weights(VERSION, tmp_path), Weights("", tiny_model), QUICK)
    assert await admin.weights() == ""
    assert (await plain.complete(asks("base"))).text == before


async def test_answers_that_do_not_end_in_time_keep_the_weights_and_the_hold_is_let_go(
    admin: HttpEngine, plain: HttpEngine, any_engine: Server, tiny_model: Path, other_model: Path
) -> None:
    fault = json.dumps({"model": "base", "delay_seconds": 4}).encode()
    await asyncio.to_thread(any_engine.request, "POST", "/headrace/faults", fault, ADMIN_KEY)
    slow = asyncio.create_task(plain.complete(asks("base")))
    end = asyncio.get_running_loop().time() + 30.0
    while not await admin.running():
        assert asyncio.get_running_loop().time() < end, "the answer does not begin"
        await asyncio.sleep(0.01)
    short = Deadlines(drain=0.2)
    with pytest.raises(EngineError, match=r"1 answers are under way .* nothing was changed"):
        await admin.swap_weights(Weights(VERSION, other_model), Weights("", tiny_model), short)
    await asyncio.to_thread(any_engine.request, "DELETE", "/headrace/faults", key=ADMIN_KEY)
    assert await admin.weights() == ""
    assert (await plain.complete(asks("base"))).text == (await slow).text


class Stuck:
    """An engine whose calls fail as told; it notes what it was asked."""

    def __init__(self, *failing: str) -> None:
        self.failing = list(failing)
        self.asked: list[str] = []
        self.when: dict[str, Callable[[], object]] = {}
        self.busy: dict[str, int] = {}

    async def admin(
        self, method: str, path: str, body: object = None, seconds: float = 60.0
    ) -> bytes:
        where = path.partition("?")[0]
        what = str(body["version"]) if isinstance(body, dict) and "version" in body else ""
        self._note(f"{method} {where} {what[:1]}".strip())
        await asyncio.sleep(0)
        return b'{"success": true}'

    async def probe(self, model: str, seconds: float) -> None:
        self._note(f"probe {model[:4]}")
        await asyncio.sleep(0)

    async def running(self) -> dict[str, int] | None:
        if self.busy:
            self._note("running")
        return self.busy

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.when:
            self.when.pop(what)()
        if self.failing and self.failing[0] == what:
            self.failing.pop(0)
            raise EngineError(f"{what} failed", 504)


THERE = [
    "POST /headrace/weights u",
    "POST /pause",
    "POST /collective_rpc",
    "POST /reset_prefix_cache",
    "POST /resume",
    "POST /headrace/weights f",
    "probe ffff",
]
BACK = [*THERE[:5], "POST /headrace/weights", "probe base"]


@pytest.mark.parametrize("failing", THERE)
async def test_whatever_step_fails_the_engine_is_resumed_and_the_weights_before_come_back(
    failing: str,
) -> None:
    engine = Stuck(failing)
    with pytest.raises(EngineError, match=f"{failing} failed; the engine serves the base"):
        await swap(engine)
    done = THERE[: THERE.index(failing) + 1]
    resumed = [] if "POST /resume" in done else ["POST /resume"]
    expected = ["POST /headrace/hold", *done, *resumed, *BACK, "DELETE /headrace/hold"]
    assert engine.asked == expected


@pytest.mark.parametrize("step", THERE)
async def test_a_swap_that_is_cancelled_goes_on_to_its_end(step: str) -> None:
    engine = Stuck()
    task = asyncio.create_task(swap(engine))
    engine.when[step] = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.asked == ["POST /headrace/hold", *THERE, "DELETE /headrace/hold"]


async def test_a_swap_that_is_cancelled_and_fails_brings_the_weights_before_back() -> None:
    engine = Stuck("POST /collective_rpc")
    task = asyncio.create_task(swap(engine))
    engine.when["POST /collective_rpc"] = task.cancel
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert "the engine serves the base model again" in str(raised.value.__cause__)
    assert engine.asked[-3:] == ["POST /headrace/weights", "probe base", "DELETE /headrace/hold"]


async def test_a_swap_that_is_cancelled_before_it_touches_the_weights_leaves_them() -> None:
    engine = Stuck()
    task = asyncio.create_task(swap(engine))
    engine.when["POST /headrace/hold"] = lambda: setattr(engine, "busy", {"base": 1})
    engine.when["running"] = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.asked == ["POST /headrace/hold", "running", "DELETE /headrace/hold"]


async def test_when_the_way_back_fails_too_the_error_says_that_nothing_is_known() -> None:
    engine = Stuck("POST /collective_rpc", "POST /collective_rpc")
    with pytest.raises(EngineError, match="weights are unknown, so it answers nobody"):
        await swap(engine)
    assert engine.asked[-2:] == ["POST /resume", "DELETE /headrace/hold"]
    named = [asked for asked in engine.asked if "weights" in asked]
    assert set(named) == {"POST /headrace/weights u"}  # no name is answered


async def swap(engine: Stuck) -> None:
    from serving.weight_swap import swap_weights

    await swap_weights(engine, Weights(VERSION, Path("to")), Weights("", Path("back")), QUICK)
