"""Load for the streams benchmark: interactions appended at once or at a rate, and who waits.

An interaction is a decision of about 1 KB and a rating of it, in a session of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec import Struct

from contracts.codec import Record, encode, header
from contracts.events import Assignment, Decision, Feedback, Message, Reward, Sampling, Timings
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import DECISIONS, FEEDBACK, REWARDS

USERS = 1000
TOKENS = 16
RATING_SECONDS = 0.2
"""How long after its decision a rating is given, in the open loop."""

QUESTION = "I bought a jacket three weeks ago and it does not fit. Can I bring it back?"
ANSWER = "Yes: with the receipt and the labels on it you can bring it back within four weeks."
SOURCE = "headrace/benchmark"
LATE_SECONDS = 30.0


def interaction(
    now: datetime, new_id: NewId, number: int, session_id: str = ""
) -> tuple[Record, Record]:
    """Return a decision and a rating of it, ready to be sent; by default in a new session."""
    decision = Decision(
        id=new_id(),
        time=now,
        session_id=session_id or f"session-{new_id()}",
        user_id=f"user-{number % USERS}",
        assignment=Assignment(policy="assistant", policy_version="base"),
        messages=(Message(role="user", content=QUESTION),),
        answer=Message(role="assistant", content=ANSWER),
        action="answer",
        text=ANSWER,
        prompt_token_ids=tuple(range(100, 100 + TOKENS)),
        token_ids=tuple(range(200, 200 + TOKENS)),
        logprobs=tuple(-0.125 * (n % 5) for n in range(TOKENS)),
        sampling=Sampling(),
        finish_reason="stop",
        timings=Timings(features_seconds=0.002, total_seconds=0.4),
        engine="benchmark",
    )
    rating = Feedback(
        id=new_id(),
        time=now,
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        kind="rating",
        score=1.0 if number % 3 else -1.0,
    )
    trace = {"traceparent": f"00-{uuid4().hex}-{number + 1:016x}-01"}
    decided = encode(DECISIONS, decision, source=SOURCE, trace=trace)
    return decided, encode(FEEDBACK, rating, source=SOURCE, trace=trace)


async def append(kafka: Kafka, records: list[Record]) -> None:
    """Append records and wait until the broker has them all."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=5) as producer:
        acks = [await _send(producer, kafka, record) for record in records]
        await asyncio.gather(*acks)


async def latencies(
    kafka: Kafka, rate: float, seconds: float, new_id: NewId, rng: random.Random
) -> list[float]:
    """Append interactions at Poisson times; return the seconds from each rating to its reward.

    Both moments are those at which one reader of both topics sees them, so that the way of a
    record to a reader is in neither. TimeoutError when a reward does not come.
    """
    seen = _Seen(kafka)
    await seen.start()
    watching = asyncio.ensure_future(seen.watch())
    sent: list[asyncio.Task[None]] = []
    try:
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=0) as producer:

            async def interact(number: int) -> None:
                decision, rating = interaction(datetime.now(UTC), new_id, number)
                await _send(producer, kafka, decision)
                await asyncio.sleep(RATING_SECONDS)
                await _send(producer, kafka, rating)

            begin = due = time.perf_counter()
            while (due := due + rng.expovariate(rate)) < begin + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sent.append(asyncio.ensure_future(interact(len(sent))))
            await asyncio.gather(*sent)
            await seen.all_rewarded(len(sent))
    finally:
        watching.cancel()
        await seen.stop()
    return seen.differences()


class _Ids(Struct):
    decision_id: str


_parse = msgspec.json.Decoder(_Ids).decode
_REWARD_TYPE = f"{Reward.TYPE}.v{Reward.VERSION}"


class _Seen:
    """A reader of ratings and rewards that notes when it sees each."""

    def __init__(self, kafka: Kafka) -> None:
        self._ratings, self._rewards = (t.full_name(kafka.prefix) for t in (FEEDBACK, REWARDS))
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap, enable_auto_commit=False, auto_offset_reset="latest"
        )
        self._partitions = range(kafka.partitions)
        self._rated: dict[str, float] = {}
        self._rewarded: dict[str, float] = {}

    async def start(self) -> None:
        await self._consumer.start()
        places = [
            TopicPartition(name, number)
            for name in (self._ratings, self._rewards)
            for number in self._partitions
        ]
        self._consumer.assign(places)
        await self._consumer.seek_to_end(*places)

    async def stop(self) -> None:
        await self._consumer.stop()

    async def watch(self) -> None:
        while True:
            for place, records in (await self._consumer.getmany(timeout_ms=100)).items():
                now = time.perf_counter()
                for record in records:
                    if place.topic == self._ratings:
                        self._rated[_parse(record.value).decision_id] = now
                    elif header(record.headers, "ce_type") in (None, _REWARD_TYPE):
                        self._rewarded.setdefault(_parse(record.value).decision_id, now)
            await asyncio.sleep(0.001)

    async def all_rewarded(self, count: int) -> None:
        deadline = time.monotonic() + LATE_SECONDS
        while len(self._rewarded) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(self._rewarded)} of {count} rewards came within {LATE_SECONDS} s "
                    "after the last rating"
                )
            await asyncio.sleep(0.05)

    def differences(self) -> list[float]:
        return [at - self._rated[name] for name, at in self._rewarded.items()]


async def _send(producer: Any, kafka: Kafka, record: Record) -> Any:
    return await producer.send(
        record.topic.full_name(kafka.prefix),
        record.value,
        key=record.key,
        headers=record.headers,
    )


def interactions(count: int, new_id: NewId) -> Iterator[Record]:
    """Yield the records of ``count`` interactions that happen now."""
    for number in range(count):
        yield from interaction(datetime.now(UTC), new_id, number)
