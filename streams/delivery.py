"""Delivery of what the processors made: records to the broker, features to the store.

Both are awaited and tried again: nothing is acknowledged upstream before it is here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from contracts.codec import Record
from contracts.settings import Kafka
from feature_store.writer import FeatureWriter
from streams.session import Index
from streams.tally import Fact, Tally

_log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 0.3, 1.0, 2.0)
FEATURE_ATTEMPTS = 6
LOOK_UP_ATTEMPTS = 2
MAX_REQUEST_BYTES = 1_040_000

T = TypeVar("T")


class Delivery:
    """The one producer of a worker; ``waiting`` says what it waits for, empty when nothing."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka, self._client_id = kafka, client_id
        self._producer: AIOKafkaProducer | None = None
        self.waiting = ""

    async def send(self, records: Sequence[Record]) -> None:
        """Send records and wait until the broker has each; tries again for as long as it takes."""
        pending, attempt = list(records), 0
        while pending:
            failed, error = await self._attempt(pending)
            if not failed:
                break
            seconds = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            self.waiting = f"broker {self._kafka.bootstrap} to take {len(failed)} records: {error}"
            _log.warning("waiting for %s; trying again in %s s", self.waiting, seconds)
            pending, attempt = failed, attempt + 1
            await self.close()  # a producer that lost its sequence cannot go on
            await asyncio.sleep(seconds)
        self.waiting = ""

    async def close(self) -> None:
        """Close the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), 10.0)
            except (KafkaError, TimeoutError, OSError) as error:
                _log.warning("producer did not close cleanly: %r", error)

    async def _attempt(self, records: list[Record]) -> tuple[list[Record], object]:
        """Return the records that were not acknowledged, and why the last one was not."""
        acks = []
        try:
            producer = await self._started()
            for record in records:
                acks.append(  # noqa: PERF401 - those sent before an error are awaited too
                    await producer.send(
                        record.topic.full_name(self._kafka.prefix),
                        record.value,
                        key=record.key,
                        headers=record.headers,
                    )
                )
        except (KafkaError, OSError) as error:
            await asyncio.gather(*acks, return_exceptions=True)
            return records, repr(error)
        results = await asyncio.gather(*acks, return_exceptions=True)
        failed, reason = [], None
        for record, result in zip(records, results, strict=True):
            if isinstance(result, MessageSizeTooLargeError):
                _log.error("%s: the broker refuses a record of this size", record.topic.name)
            elif isinstance(result, BaseException):
                failed.append(record)
                reason = repr(result)
        return failed, reason

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._kafka.bootstrap,
                client_id=self._client_id,
                acks="all",
                enable_idempotence=True,
                linger_ms=5,
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


class FeatureLog:
    """Counts facts and writes the rows, in a thread: the store blocks. One call at a time."""

    def __init__(self, writer: FeatureWriter, window_seconds: float = 3600.0) -> None:
        self._writer = writer
        self.tally = Tally(writer.latest, window_seconds)
        self.failures = 0

    async def record(self, facts: Sequence[Fact], *, shared: bool) -> bool:
        """Write the features that follow from facts; False when they were given up.

        A store that stays away costs the freshness of features, not the rewards: after a few
        attempts the rows are given up; the counts in them go out with the next ones.
        """
        return await self._try(lambda: self._write(list(facts), shared), False, FEATURE_ATTEMPTS)

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
        return True


_parse = msgspec.json.Decoder(Index).decode
