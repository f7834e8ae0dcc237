"""The gateway benchmark asks every gateway the same and says what ours costs beside the others."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gateway import table
from benchmarks.gateway_load import Target, closed_loop, open_loop
from benchmarks.gateway_upstream import WORDS
from console.local_broker import free_port
from contracts.events import Sampling
from serving.engine import EngineRequest
from serving.http_engine import HttpEngine
from tests.serving.http_server import Server


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_upstream", "mock", "--port", str(port)]
    log: Path = tmp_path_factory.mktemp("mock") / "mock.log"
    server = Server(command, {}, port, log).wait("/health")
    yield server
    server.stop()


async def test_the_mock_upstream_answers_as_an_engine_does(mock: Server) -> None:
    engine = HttpEngine(mock.url, 10.0)
    asked = EngineRequest("base", [{"role": "user", "content": "Hi"}], [], Sampling())
    answer = await engine.complete(asked)
    chunks = [chunk async for chunk in engine.stream(asked)]
    await engine.close()
    assert answer.text == "".join(chunk.text for chunk in chunks) == "".join(WORDS)
    assert len(answer.logprobs) == len(answer.token_ids) == len(WORDS) == len(chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_every_arrival_of_an_open_loop_is_timed_from_when_it_was_due(
    mock: Server, stream: bool
) -> None:
    result = await open_loop(Target(mock.url), 200.0, 0.25, random.Random(1), stream=stream)
    assert result.failed == 0
    assert len(result.timings) > 20
    assert all(0 < timing.first <= timing.whole for timing in result.timings)


async def test_a_closed_loop_sends_as_many_as_asked_and_tells_failures(mock: Server) -> None:
    rng = random.Random(1)
    result = await closed_loop(Target(mock.url), 21, 4, rng, stream=False)
    assert (len(result.timings), result.failed) == (21, 0)
    nowhere = Target(f"http://127.0.0.1:{free_port()}")
    result = await closed_loop(nowhere, 2, 1, rng, stream=False)
    assert (len(result.timings), result.failed) == (0, 2)
    assert result.failures


def test_the_table_gives_each_gateway_as_multiples_of_ours() -> None:
    def figures(*cpu: float) -> dict[str, object]:
        of_kind = {"cpu_ms": list(cpu)}
        return {"plain": of_kind, "streaming": of_kind, "idle_cpu_ms_per_second": 1.0}

    added = {"30": {"ours": [{"p50": 1.0, "p99": 2.0}]}}
    lines = table(
        {
            "gateways": {"ours": figures(0.5, 1.0), "peer": figures(10.0, 10.0)},
            "added_ms": {"plain": added, "streaming": added},
            "broker_cpu_ms": {"plain": [0.1]},
            "options": {},
        }
    ).splitlines()
    assert lines[2].startswith("| ours | 0.75 [0.50, 1.00] | 1.00 [1.00, 1.00] | 1.00 / 2.00 |")
    assert lines[3].startswith("| peer | 10.00 [10.00, 10.00] | 15.00 [10.00, 20.00] | - |")
