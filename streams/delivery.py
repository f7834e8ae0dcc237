"""Delivery of what the processors made: records to the broker, features to the store.

Both are awaited and tried again: nothing is acknowledged upstream before it is here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.partitioner import murmur2

from contracts.codec import Record
from contracts.settings import Kafka
from contracts.topics import AUDIT
from feature_store.writer import FeatureWriter
from streams.session import Index
from streams.tally import Fact, Tally

_log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 0.3, 1.0, 2.0)
FEATURE_ATTEMPTS = 6
MAX_GIVEN_UP = 20_000
"""Facts kept of those that the store did not take, the newest; older ones are not counted."""

LOOK_UP_ATTEMPTS = 2
MAX_REQUEST_BYTES = 1_040_000

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

MAX_BATCH_BYTES = 256 << 10
"""The default of 16 KiB is some thirty records: the audit, all of one key, took a request each."""

T = TypeVar("T")


class _Batch:
    """Records for one partition, and the builder of their bytes."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.records = builder, list[Record]()

    def take(self, record: Record) -> bool:
        """Add a record; False when it is too much. The first is always taken."""
        added = self.builder.append(
            key=record.key, value=record.value, timestamp=None, headers=record.headers
        )
        if added is None:
            return False
        self.records.append(record)
        return True


class Delivery:
    """The one producer of a worker; ``waiting`` says what it waits for, empty when nothing."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka, self._client_id = kafka, client_id
        self._producer: AIOKafkaProducer | None = None
        self.waiting = ""

    async def send(
        self, records: Sequence[Record], is_ours: Callable[[], Awaitable[bool]] | None = None
    ) -> bool:
        """Send records and wait until the broker has each; tries again for as long as it takes.

        What the broker refuses for its size is left out alone: its batch is sent again record by
        record, each time by a new producer, since a refusal breaks the sequence of the old one.
        ``is_ours`` is asked before each attempt. Where it says no, False is returned: others make
        these records now, newer ones perhaps, and the audit alone is sent, as its chain needs it.
        """
        pending, attempt, singly, ours = list(records), 0, False, True
        while pending:
            failed: list[Record] = pending
            error: Exception | None = None
            try:
                if ours and is_ours is not None and not await is_ours():
                    ours, pending = False, [r for r in pending if r.topic is AUDIT]
                    continue
            except (KafkaError, OSError, TimeoutError) as unknown:
                error = unknown
            else:
                failed, error = await self._attempt(pending, singly=singly)
            if not failed:
                break
            if isinstance(error, TOO_LARGE):
                pending, singly = failed, True
                await self.close()
                continue
            seconds = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            self.waiting = (
                f"broker {self._kafka.bootstrap} to take {len(failed)} records: {error!r}"
            )
            _log.warning("waiting for %s; trying again in %s s", self.waiting, seconds)
            pending, attempt = failed, attempt + 1
            await self.close()  # a producer that lost its sequence cannot go on
            await asyncio.sleep(seconds)
        self.waiting = ""
        return ours

    async def close(self) -> None:
        """Close the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), 10.0)
            except (KafkaError, TimeoutError, OSError) as error:
                _log.warning("producer did not close cleanly: %r", error)

    async def _attempt(
        self, records: list[Record], *, singly: bool
    ) -> tuple[list[Record], Exception | None]:
        """Return the records that were not acknowledged, and why one of them was not."""
        try:
            producer = await self._started()
            batches = await self._batched(producer, records, singly=singly)
        except (KafkaError, OSError) as error:
            return records, error
        results = await asyncio.gather(
            *(_send_in_order(producer, *place, of_place) for place, of_place in batches.items())
        )
        failed = [record for of_place, _ in results for record in of_place]
        errors = [error for _, error in results if error is not None]
        # A refusal for size is dealt with first: the other errors may follow from it.
        return failed, max(errors, key=lambda error: isinstance(error, TOO_LARGE), default=None)

    async def _batched(
        self, producer: AIOKafkaProducer, records: Sequence[Record], *, singly: bool
    ) -> dict[tuple[str, int], list[_Batch]]:
        """Fill the producer's batches by hand: record by record it takes twice the time."""
        found: dict[tuple[str, int], list[_Batch]] = {}
        names: dict[str, tuple[str, int]] = {}
        for record in records:
            if record.topic.name not in names:
                full_name = record.topic.full_name(self._kafka.prefix)
                names[record.topic.name] = full_name, len(await producer.partitions_for(full_name))
            full_name, partitions = names[record.topic.name]
            place = full_name, _hash(record.key) % partitions
            batches = found.setdefault(place, [])
            if singly or not batches or not batches[-1].take(record):
                batches.append(_Batch(producer.create_batch()))
                batches[-1].take(record)
        return found

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._kafka.bootstrap,
                client_id=self._client_id,
                acks="all",
                enable_idempotence=True,
                max_batch_size=MAX_BATCH_BYTES,
                max_request_size=MAX_REQUEST_BYTES,
                request_timeout_ms=10_000,
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer


async def _send_in_order(
    producer: AIOKafkaProducer, topic: str, partition: int, batches: list[_Batch]
) -> tuple[list[Record], Exception | None]:
    """Send one partition's batches one after the other; return what was not taken, and why.

    A record that is too large by itself is given up.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        batch.builder.close()
        try:
            await (await producer.send_batch(batch.builder, topic, partition=partition))
        except TOO_LARGE as error:
            left = [record for later in waiting for record in later.records]
            if len(batch.records) > 1:
                return batch.records + left, error
            _log.error("%s: the broker refuses a record of this size", topic)
            return left, error
        except (KafkaError, OSError) as error:
            return [*batch.records, *(r for later in waiting for r in later.records)], error
    return [], None


@lru_cache(10_000)
def _hash(key: bytes) -> int:
    """Return what Kafka's clients choose a key's partition by."""
    return int(murmur2(key)) & 0x7FFFFFFF


class FeatureLog:
    """Counts facts and writes the rows, in a thread: the store blocks. One call at a time."""

    def __init__(self, writer: FeatureWriter, window_seconds: float = 3600.0) -> None:
        self._writer = writer
        self.tally = Tally(writer.latest, window_seconds)
        self._given_up: deque[Fact] = deque(maxlen=MAX_GIVEN_UP)
        self.failures = 0

    async def record(self, facts: Sequence[Fact], *, shared: bool) -> bool:
        """Write the features that follow from facts; False when they were given up.

        A store that stays away costs the freshness of features, not the rewards: after a few
        attempts they are given up, and go out with the next ones.
        """
        told = [*self._given_up, *facts]
        written = await self._try(lambda: self._write(told, shared), False, FEATURE_ATTEMPTS)
        self._given_up.clear()
        if not written:
            self._given_up.extend(told)
        return written

    def forget(self) -> None:
        """Drop what is known of the store: partitions have changed hands."""
        self.tally.forget()

    def keep(self, partitions: Collection[int]) -> None:
        """Keep of the facts that were given up those of these partitions: their records are
        acknowledged, and nobody tells of them again."""
        kept = [fact for fact in self._given_up if fact.partition in partitions]
        self._given_up.clear()
        self._given_up.extend(kept)

    async def indexes(self, session_ids: Collection[str]) -> dict[str, Index]:
        """Return where these sessions are in the log, of those that are known.

        A store that stays away knows of none: rewards do not wait for it.
        """
        if not session_ids:
            return {}
        ids, none_known = list(session_ids), dict[str, Index]()
        return await self._try(lambda: self._indexes(ids), none_known, LOOK_UP_ATTEMPTS)

    async def _try(self, work: Callable[[], T], otherwise: T, attempts: int) -> T:
        for attempt in range(attempts):
            try:
                return await asyncio.to_thread(work)
            except Exception as error:  # noqa: BLE001 - Feast and its stores raise many kinds
                _log.warning("feature store fails (attempt %d): %r", attempt + 1, error)
                await asyncio.sleep(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)])
        self.failures += 1
        return otherwise

    def _indexes(self, ids: list[str]) -> dict[str, Index]:
        rows = self._writer.latest("session", ids)
        found = {key: values.get("log") for key, (values, _) in rows.items()}
        return {key: _parse(text) for key, text in found.items() if isinstance(text, str)}

    def _write(self, facts: list[Fact], shared: bool) -> bool:
        with self._writer.alone() if shared else nullcontext():
            self._writer.write(self.tally.rows(facts, shared=shared))
            self.tally.written()
        return True


_parse = msgspec.json.Decoder(Index).decode
