"""A real consumer on the development broker, which answers empty fetches at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.settings import Kafka
from contracts.topics import DECISIONS
from streams.pacing import pace

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
