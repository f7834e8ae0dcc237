"""Swaps under streams: nothing fails, nothing breaks off, no answer is of two versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.swap_load import EngineFront, Said, Streams, measure
from benchmarks.swap_versions import Marked, make_versions
from serving.http_engine import HttpEngine
from tests.serving.http_server import Server


@pytest.fixture(scope="module")
def versions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Marked]:
    return make_versions(tiny_model, tmp_path_factory.mktemp("marked"), 11)


@pytest.fixture
async def plain(any_engine: Server) -> AsyncIterator[HttpEngine]:
    """A client that may generate, and no more."""
    client = HttpEngine(any_engine.url, timeout_seconds=60.0)
    yield client
    await client.close()


async def test_swaps_under_load_fail_break_off_and_mix_nothing(
    admin: HttpEngine,
    plain: HttpEngine,
    versions: list[Marked],
    request: pytest.FixtureRequest,
) -> None:
    many = "vllm" in request.node.name
    used = versions if many else versions[:6]
    front = EngineFront(plain, versions)
    found = await measure(
        front, admin, used, streams=8 if many else 4, tokens=16, calm=4, answers_per_swap=4
    )
    assert found.examples == ()
    assert (found.failed, found.truncated, found.mixed) == (0, 0, 0)
    assert found.freed_while_answering == 0
    assert found.unloads_refused_while_answering > 0  # it was tried while answers ran
    assert found.swaps == len(used) - 1
    assert await admin.models() == {"base": ""}


class TwoVersions:
    """A front whose answers change version in the middle, break off, or fail."""

    named = True

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)
        self.gone = asyncio.Event()

    async def ask(self, version: str, question: str, tokens: int) -> Said:
        await asyncio.sleep(0)
        text = next(self.texts, "")
        if not text:
            self.gone.set()
            raise OSError("gone")
        return Said(version, list(text), "length" if len(text) == tokens else "stop", 1.0)

    async def shift(self, version: Marked) -> None:
        return None


async def test_the_tally_sees_an_answer_of_two_versions_a_short_one_and_a_failed_one() -> None:
    front = TwoVersions(["aaaa", "aabb", "aa"])
    streams = Streams(front, [Marked("v0", Path(), 1, "a"), Marked("v1", Path(), 2, "b")], 4)

    await streams.run(1, front.gone.wait)
    assert (streams.mixed, streams.truncated) == (1, 1)
    assert streams.failures[0] == "v0: gone"
