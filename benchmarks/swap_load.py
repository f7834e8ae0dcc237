"""Steady streams, and swaps under them: load, shift, unload once drained; each token is checked."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import aiohttp
import msgspec
from msgspec import Struct

from benchmarks.swap_versions import Marked
from contracts.errors import EngineError
from contracts.events import Sampling
from serving.engine import EngineRequest
from serving.http_engine import HttpEngine

SECONDS = 120.0
POLL_SECONDS = 0.005
SETTLE_SECONDS = 0.05
"""An answer that ended before its adapter left is over at the client, too, by then."""
BUSY = 409


class Said(Struct):
    """What came of one request; ``version`` is the one that answered."""

    version: str
    pieces: list[str] = []
    finish: str = ""
    first: float = 0.0


class Front(Protocol):
    """Where the streams go, and how traffic is shifted to another version there.

    ``named``: whether a request says which version it wants.
    """

    named: bool

    async def ask(self, version: str, question: str, tokens: int) -> Said:
        """Stream one answer of so many tokens."""
        ...

    async def shift(self, version: Marked) -> None:
        """Make requests go to a version; return when those that begin from here on do."""
        ...


class Figures(Struct, frozen=True, kw_only=True):
    """What became of a run; times in milliseconds. ``mixed``: of two versions."""

    swaps: int
    requests: int
    failed: int
    truncated: int
    mixed: int
    freed_while_answering: int
    unloads_refused_while_answering: int
    ready_ms: tuple[float, ...]
    first_token_ms_with: tuple[float, ...]
    first_token_ms_without: tuple[float, ...]
    tokens_per_second_with: float
    tokens_per_second_without: float
    examples: tuple[str, ...]


class Streams:
    """Concurrent closed-loop streams of one front, with a tally of what came back."""

    def __init__(self, front: Front, versions: Sequence[Marked], tokens: int) -> None:
        self.current = versions[0].name
        self.answering: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.requests = self.truncated = self.mixed = 0
        self.failures: list[str] = []
        self.odd: list[str] = []
        self.first_ms: list[float] = []
        self._front = front
        self._marks = {version.name: version.text for version in versions}
        self._tokens = tokens
        self._random = random.Random(0)
        self._stopped = False

    async def run(self, count: int, work: Callable[[], Any]) -> float:
        """Keep ``count`` streams busy while ``work`` runs; return the seconds of both."""
        self._stopped = False
        self.first_ms = []
        begin = time.perf_counter()
        streams = [asyncio.create_task(self._stream()) for _ in range(count)]
        try:
            await work()
        finally:
            self._stopped = True
            await asyncio.gather(*streams)
        return time.perf_counter() - begin

    async def _stream(self) -> None:
        while not self._stopped:
            await self._ask()

    async def _ask(self) -> None:
        question = f"Question {self._random.randrange(10**9)}: where is my order?"
        asked, begin = self.current if self._front.named else "", time.perf_counter()
        self.requests += 1
        self.answering[asked] += 1
        try:
            said = await self._front.ask(asked, question, self._tokens)
        except (EngineError, aiohttp.ClientError, TimeoutError, OSError) as error:
            self.failures.append(f"{asked}: {error or type(error).__name__}")
            return
        finally:
            self.answering[asked] -= 1
        self.first_ms.append(1000 * (said.first - begin))
        text = "".join(said.pieces)
        short = len(text) != self._tokens or said.finish != "length"
        mixed = set(text) != {self._marks.get(said.version)}
        self.truncated += short
        self.mixed += mixed
        if short or mixed:
            self.odd.append(f"{said.version} ({self._marks.get(said.version)}): {text!r}")
        self.done[said.version] += 1


async def measure(
    front: Front,
    admin: HttpEngine,
    versions: Sequence[Marked],
    *,
    streams: int = 8,
    tokens: int = 32,
    calm: int = 100,
    answers_per_swap: int = 8,
    shown: Callable[[], object] = lambda: None,
) -> Figures:
    """Run ``calm`` answers without swaps, a swap to each further version, and ``calm`` again."""
    load = Streams(front, versions, tokens)
    swapper = _Swapper(load, front, admin, versions[0])
    await admin.load_adapter(versions[0].name, versions[0].path)
    await front.shift(versions[0])

    async def calmly() -> None:
        want = load.done.total() + calm
        await _until(lambda: load.done.total() >= want or bool(load.failures), "answers")

    async def swapping() -> None:
        for version in versions[1:]:
            await swapper.swap(version, answers_per_swap)
            shown()

    await load.run(streams, calmly)  # warms up: the first tokens of an engine are slow
    blocks = []
    for work in (calmly, swapping, calmly):
        before = load.done.total()
        seconds = await load.run(streams, work)
        rate = (load.done.total() - before) * tokens / seconds
        blocks.append((tuple(load.first_ms), rate))
    await swapper.unload(versions[-1])
    return Figures(
        swaps=len(swapper.ready_ms),
        requests=load.requests,
        failed=len(load.failures),
        truncated=load.truncated,
        mixed=load.mixed,
        freed_while_answering=swapper.freed_while_answering,
        unloads_refused_while_answering=swapper.refused,
        ready_ms=tuple(swapper.ready_ms),
        first_token_ms_with=blocks[1][0],
        first_token_ms_without=blocks[0][0] + blocks[2][0],
        tokens_per_second_with=blocks[1][1],
        tokens_per_second_without=(blocks[0][1] + blocks[2][1]) / 2,
        examples=tuple(dict.fromkeys([*load.failures, *load.odd]))[:5],
    )


class _Swapper:
    def __init__(self, load: Streams, front: Front, admin: HttpEngine, first: Marked) -> None:
        self.ready_ms: list[float] = []
        self.freed_while_answering = 0
        self.refused = 0
        self._load = load
        self._front = front
        self._admin = admin
        self._serving = first

    async def swap(self, version: Marked, answers: int) -> None:
        """Load a version, shift all traffic to it, unload the one before as soon as it lets go."""
        begin = time.perf_counter()
        await self._admin.load_adapter(version.name, version.path)
        self.ready_ms.append(1000 * (time.perf_counter() - begin))
        await self._front.shift(version)
        self._load.current = version.name
        before, self._serving = self._serving, version
        await self.unload(before)
        done, load = self._load.done, self._load
        await _until(
            lambda: done[version.name] >= answers or bool(load.failures), f"{version.name} answers"
        )

    async def unload(self, version: Marked) -> None:
        """Unload a version as soon as the door lets it go."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                await self._admin.unload_adapter(version.name)
            except EngineError as error:
                if error.status != BUSY or time.monotonic() > end:
                    raise
                self.refused += 1
                await asyncio.sleep(POLL_SECONDS)
            else:
                await asyncio.sleep(SETTLE_SECONDS)
                self.freed_while_answering += self._load.answering[version.name]
                return


async def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: nothing within {SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


class EngineFront:
    """Streams go to the engine itself and name their version."""

    named = True

    def __init__(self, engine: HttpEngine, versions: Sequence[Marked]) -> None:
        self._engine = engine
        self._texts = {version.token: version.text for version in versions}

    async def ask(self, version: str, question: str, tokens: int) -> Said:
        """Stream one answer; see `Front`."""
        sampling = Sampling(temperature=0.0, max_tokens=tokens)
        said = Said(version)
        messages = [{"role": "user", "content": question}]
        async for chunk in self._engine.stream(EngineRequest(version, messages, [], sampling)):
            if chunk.token_ids and not said.pieces:
                said.first = time.perf_counter()
            said.pieces += [self._texts.get(token, "?") for token in chunk.token_ids]
            said.finish = chunk.finish_reason or said.finish
        return said

    async def shift(self, version: Marked) -> None:
        """Do nothing: each request names its version."""


class GatewayFront:
    """Streams go through the gateway, which chooses by the rollout state that ``tell`` writes."""

    named = False

    def __init__(self, url: str, tell: Callable[[Marked], None]) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._tell = tell
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=SECONDS), read_bufsize=1 << 20
        )

    async def ask(self, version: str, question: str, tokens: int) -> Said:
        """Stream one answer of whatever version the gateway chooses; see `Front`."""
        body = {
            "model": "assistant",
            "messages": [{"role": "user", "content": question}],
            "user": question,
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
        }
        said = Said("")
        async with self._session.post(self._url, json=body) as answer:
            if answer.status != 200:
                raise EngineError(f"gateway: {answer.status} {await answer.text()}")
            async for line in answer.content:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    self._take(said, msgspec.json.decode(line[5:]))
        return said

    def _take(self, said: Said, event: Any) -> None:
        if "error" in event:
            raise EngineError(f"gateway: {event['error']}")
        said.version = event.get("headrace", {}).get("policy_version", said.version)
        for choice in event["choices"]:
            text = choice["delta"].get("content") or ""
            if text and not said.pieces:
                said.first = time.perf_counter()
            if text:
                said.pieces.append(text)
            said.finish = choice.get("finish_reason") or said.finish

    async def shift(self, version: Marked) -> None:
        """Write the state and wait until the gateway answers by it."""
        self._tell(version)
        end = time.monotonic() + SECONDS
        while (await self.ask("", "Who answers?", 1)).version != version.name:
            if time.monotonic() > end:
                raise TimeoutError(f"the gateway does not serve {version.name}")

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
