"""Reads single records of the log by their offsets, beside the consumer group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from contracts.broker import Received
from contracts.settings import Kafka
from contracts.topics import DECISIONS, FEEDBACK, Topic
from streams.recall import Wanted

RECORD_SECONDS = 5.0
"""A record that is there comes within this time, or the broker is asked again."""

ATTEMPTS, ATTEMPT_SECONDS = 2, 1.0

_log = logging.getLogger(__name__)


class LogLookup:
    """A consumer without a group; ``waiting`` says what it waits for, empty when nothing."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka, self._client_id = kafka, client_id
        self._consumer: AIOKafkaConsumer | None = None
        self.waiting = ""

    async def read(self, wanted: Wanted) -> list[Received]:
        """Return a session's records that are still in the log; waits for a broker that is away."""
        while True:
            try:
                found = await self._records(DECISIONS, wanted.partition, wanted.decisions)
                found += await self._records(FEEDBACK, wanted.partition, wanted.feedback)
            except (KafkaError, OSError, TimeoutError) as error:
                self.waiting = f"broker {self._kafka.bootstrap} to give a session again: {error!r}"
                _log.warning("waiting for %s", self.waiting)
                await self.close()
                await asyncio.sleep(ATTEMPT_SECONDS)
            else:
                self.waiting = ""
                return found

    async def close(self) -> None:
        """Close the connection."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                await asyncio.wait_for(consumer.stop(), RECORD_SECONDS)
            except (KafkaError, OSError, TimeoutError) as error:
                _log.warning("the lookup's consumer did not close cleanly: %r", error)

    async def _records(
        self, topic: Topic, partition: int, offsets: Sequence[int]
    ) -> list[Received]:
        if not offsets:
            return []
        consumer = await self._started()
        place = TopicPartition(topic.full_name(self._kafka.prefix), partition)
        consumer.assign([place])
        begins = (await consumer.beginning_offsets([place]))[place]
        ends = (await consumer.end_offsets([place]))[place]
        found = []
        for offset in sorted(offsets):
            if not begins <= offset < ends:
                continue
            record = await _record_at(consumer, place, offset)
            if record is not None:
                headers = [(name, bytes(value or b"")) for name, value in record.headers]
                found.append(Received(topic, partition, offset, record.key, record.value, headers))
        return found

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._kafka.bootstrap,
                client_id=self._client_id,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=1 << 20,
                request_timeout_ms=10_000,
            )
            try:
                await asyncio.wait_for(consumer.start(), RECORD_SECONDS)
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer


async def _record_at(consumer: Any, place: Any, offset: int) -> Any:
    """Return the record at an offset, None where retention, compaction or a marker has its place.

    The broker answers before each attempt: what then does not come twice is not there.
    """
    for _ in range(ATTEMPTS):
        consumer.seek(place, offset)
        try:
            record = await asyncio.wait_for(consumer.getone(), RECORD_SECONDS)
        except TimeoutError:
            await consumer.end_offsets([place])  # of one that stands still: raises, or waits for it
            continue
        return record if record.offset == offset else None
    _log.warning("%s/%d@%d did not come and is left out", place.topic, place.partition, offset)
    return None
