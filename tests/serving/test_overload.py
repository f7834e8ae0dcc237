"""How long an answer will take is learned, and what would take too long is refused at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from contracts import settings as s
from serving.budget import Budget
from serving.engine import EngineAnswer, EngineRequest
from serving.overload import Line, Load
from serving.wire_errors import Refusal
from tests.serving.scripted_gateway import ScriptedEngine, ScriptedGateway


def test_an_engine_that_answers_one_after_the_other_is_recognised() -> None:
    line = Line()
    for under_way in (1, 2, 3, 1, 2, 3, 2, 4):
        line.add(under_way, 0.1 * under_way)
    assert line.at(4) == pytest.approx(0.4)
    assert line.at(8) == pytest.approx(0.8)
    assert line.at(800) == line.at(32)  # no further than eight times what was seen


def test_an_engine_that_answers_all_at_once_costs_each_nothing() -> None:
    line = Line()
    for under_way in (1, 5, 9, 3, 20):
        line.add(under_way, 1.0)
    for _ in range(5):
        line.add(7, 1.0)
    assert line.at(40) == pytest.approx(1.0)


def test_the_line_forgets_what_the_engine_was() -> None:
    line = Line()
    for under_way in list(range(1, 20)) * 3:
        line.add(under_way, 1.0 * under_way)
    for under_way in list(range(1, 20)) * 12:
        line.add(under_way, 0.1)
    assert line.at(20) == pytest.approx(0.1, abs=0.02)


def busy(under_way: int) -> Load:
    """A load whose answers take 1 s for each request under way."""
    load = Load()
    for number in (1, 2, 3, 4, 5, 6, 7, 8):
        load.took(number, float(number), stream=False)
    load.under_way = under_way
    return load


def test_what_would_take_too_much_of_the_budget_is_refused_with_a_time_to_come_back() -> None:
    load = busy(7)
    with load.asking(Budget(20.0), stream=False) as place:
        assert place == 8
    with pytest.raises(Refusal) as refused, load.asking(Budget(10.0), stream=False):
        pass
    assert (refused.value.status, refused.value.retry_after) == (429, 4)
    assert "7 requests are under way and an answer would take 8 s" in str(refused.value)
    assert (load.under_way, load.refused) == (7, 1)


def test_with_none_before_it_a_request_is_let_through_whatever_was_measured() -> None:
    with busy(0).asking(Budget(0.1), stream=False):
        pass


def test_a_slow_engine_without_a_queue_is_not_called_overloaded() -> None:
    load = Load()
    for under_way in (1, 2, 3, 4, 5, 6):
        load.took(under_way, 9.0, stream=False)
    load.under_way = 3
    with load.asking(Budget(10.0), stream=False):
        pass


def test_requests_that_run_out_of_a_short_time_do_not_make_the_engine_look_fast() -> None:
    load = busy(7)
    for _ in range(100):
        load.took(8, 0.1, stream=False, ended=False)
    assert load.expected(stream=False) == pytest.approx(8.0)
    for _ in range(100):
        load.took(8, 16.0, stream=False, ended=False)
    assert load.expected(stream=False) > 12.0


class OneByOne(ScriptedEngine):
    """Answers one request after the other, each in a fixed number of turns of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self._free = asyncio.Lock()

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        async with self._free:
            await asyncio.sleep(0.02)
            return await super().complete(request)


async def test_of_a_burst_some_are_refused_at_once_and_all_others_are_answered(
    tmp_path: Path,
) -> None:
    engine = s.Engine(timeout_seconds=6.0)
    gateway = ScriptedGateway(tmp_path, engine=engine, engine_is=OneByOne())
    for size in (1, 2, 4, 8, 16, 32):
        await asyncio.gather(*(gateway.ask() for _ in range(size)))
    answers = await asyncio.gather(*(gateway.ask() for _ in range(250)))
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    assert {a.headers["x-headrace-rung"] for a in answers if a.status_code == 200} == {"stable"}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    asked = gateway.engine.asked.total()
    assert asked == counts[200] + 63  # those refused never reached the engine
    metrics = (await gateway.client.get("/metrics")).text
    assert f"headrace_overload_refused {counts[429]}" in metrics
    await gateway.close()
