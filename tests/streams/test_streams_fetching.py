"""A real consumer on the development broker, which answers empty fetches at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import DECISIONS
from streams.fetching import pace, rewind_uncommitted
from tests.topic_log import publish

ROUND_TRIPS = 20


@pytest.mark.parametrize(("seconds", "once"), [(60.0, True), (0.0, False)])
async def test_an_empty_fetch_is_repeated_only_after_the_pause(
    kafka: Kafka, seconds: float, once: bool
) -> None:
    place = TopicPartition(DECISIONS.full_name(kafka.prefix), 0)
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
    fetches, first = 0, asyncio.Event()
    await consumer.start()
    fetch = consumer._fetcher._proc_fetch_request

    async def counted(*arguments: Any) -> bool:
        nonlocal fetches
        found: bool = await fetch(*arguments)
        fetches += 1
        first.set()
        return found

    try:
        consumer._fetcher._proc_fetch_request = counted
        pace(consumer._fetcher, seconds)
        consumer.assign([place])
        await asyncio.wait_for(first.wait(), 30.0)
        for _ in range(ROUND_TRIPS):
            await consumer.end_offsets([place])
        assert (fetches == 1) is once
    finally:
        await consumer.stop()


async def test_what_was_fetched_and_dropped_without_a_commit_is_read_again(
    kafka: Kafka, new_id: NewId, decision: Any
) -> None:
    sent = [decision() for _ in range(3)]
    publish(kafka, DECISIONS, *sent)
    consumer: Any = AIOKafkaConsumer(
        DECISIONS.full_name(kafka.prefix),
        bootstrap_servers=kafka.bootstrap,
        group_id=new_id(),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        assert len(await _read(consumer, len(sent))) == len(sent)
        thread = SimpleNamespace(
            seek_to_committed=consumer.seek_to_committed,
            seek_to_beginning=consumer.seek_to_beginning,
        )
        rewind_uncommitted(thread)
        await thread.seek_to_committed()
        assert len(await _read(consumer, len(sent))) == len(sent)
    finally:
        await consumer.stop()


async def _read(consumer: Any, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(30.0):
        while len(found) < count:
            batches = await consumer.getmany(timeout_ms=500)
            found += [record for records in batches.values() for record in records]
    return found
