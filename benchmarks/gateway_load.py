"""Load for the gateway benchmark: open-loop arrivals for latency, a closed loop for CPU.

Open loop: requests start at Poisson times drawn from a seed whatever the answers do, and a latency
counts from the time a request should have started (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence

import aiohttp
import msgspec
from msgspec import Struct

QUESTION = (
    "I bought a jacket in your shop three weeks ago and it does not fit. I still have the receipt "
    "and the labels are on it. Can I bring it back, and do I get my money or a voucher? "
    "I live two hours away from the shop, so I would rather send it by post."
)
USERS = 1000
TIMEOUT_SECONDS = 60.0


class Target(Struct, frozen=True):
    """Where requests go, and the headers they carry."""

    url: str
    headers: dict[str, str] = {}


class Timing(Struct, frozen=True):
    """Seconds from the arrival to the first byte of the body and to its end."""

    first: float
    whole: float


class Result(Struct, frozen=True):
    """What became of a run. ``failures`` holds up to three reasons."""

    timings: list[Timing]
    failed: int
    failures: list[str]
    seconds: float


def bodies(rng: random.Random, *, stream: bool) -> Iterator[bytes]:
    """Yield request bodies of `USERS` users for ever."""
    while True:
        yield msgspec.json.encode(
            {
                "model": "assistant",
                "messages": [{"role": "user", "content": QUESTION}],
                "user": f"user-{rng.randrange(USERS)}",
                "max_tokens": 64,
                "stream": stream,
            }
        )


async def closed_loop(
    target: Target, requests: int, clients: int, rng: random.Random, *, stream: bool
) -> Result:
    """Send ``requests`` in all, each of ``clients`` one after the other."""
    run = _Run(target)
    source = bodies(rng, stream=stream)
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await run.ask(next(source), time.perf_counter())

    return await run.done([asyncio.ensure_future(client()) for _ in range(clients)])


async def open_loop(
    target: Target, rate: float, seconds: float, rng: random.Random, *, stream: bool
) -> Result:
    """Send ``rate`` requests a second at Poisson times for ``seconds``."""
    run = _Run(target)
    source = bodies(rng, stream=stream)
    begin = time.perf_counter()
    due, tasks = begin, []
    while (due := due + rng.expovariate(rate)) < begin + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(run.ask(next(source), due)))
    return await run.done(tasks)


class _Run:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )
        self._begin = time.perf_counter()
        self._timings: list[Timing] = []
        self._failures: list[str] = []

    async def ask(self, body: bytes, due: float) -> None:
        headers = {"Content-Type": "application/json", **self._target.headers}
        url = f"{self._target.url}/v1/chat/completions"
        try:
            async with self._session.post(url, data=body, headers=headers) as answer:
                content = await answer.content.readany()
                first = time.perf_counter()
                content += await answer.read()
                whole = time.perf_counter()
                if answer.status != 200 or b"thirty" not in content:
                    self._failures.append(f"{answer.status}: {content[:200]!r}")
                    return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._failures.append(f"{type(error).__name__}: {error}")
            return
        self._timings.append(Timing(first - due, whole - due))

    async def done(self, tasks: Sequence[asyncio.Future[None]]) -> Result:
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - self._begin
        await self._session.close()
        failures = list(dict.fromkeys(self._failures))[:3]
        return Result(self._timings, len(self._failures), failures, seconds)
