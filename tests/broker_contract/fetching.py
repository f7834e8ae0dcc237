"""How a broker answers a fetch of a log that has nothing new."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as Place

from contracts.settings import Kafka
from tests.broker_contract.clients import make_topic, numbered, publish, take

HELD_MS = 30_000
ROUND_TRIPS = 20


async def a_fetch_that_finds_nothing_is_held_until_something_comes(kafka: Kafka) -> None:
    """Held for as long as the client asks; other connections are answered meanwhile."""
    topic = make_topic(kafka)
    place = Place(topic.full_name(kafka.prefix), 0)
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, fetch_max_wait_ms=HELD_MS)
    other = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
    await consumer.start()
    fetch, answered = consumer._fetcher._proc_fetch_request, 0

    async def counted(*arguments: Any) -> bool:
        nonlocal answered
        found: bool = await fetch(*arguments)
        answered += 1
        return found

    try:
        consumer._fetcher._proc_fetch_request = counted
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        await other.start()
        for _ in range(ROUND_TRIPS):
            await other.end_offsets([place])
        assert answered == 0
        await asyncio.to_thread(publish, kafka, numbered(topic, range(1)))
        assert [record.offset for record in await take(consumer, 1)] == [0]
    finally:
        await other.stop()
        await consumer.stop()
