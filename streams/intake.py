"""Records on their way from Faust's consumer to the worker: a bounded queue, emptied in batches.

Faust hands record by record to a stream, with two tasks and an event each: most of what reading
cost. Here its consumer fills our queue; groups, positions, acknowledgements and commits stay its
own. See decision 0110.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

POLL_SECONDS = 1.0

MAX_BYTES = 64 << 20
"""Bytes of values that wait at most, but for what one more fetch brings."""


class Intake:
    """The messages of one worker that were read and not taken yet, at most about ``limit`` and of
    about `MAX_BYTES`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Any] = deque()
        self._bytes = 0
        self._arrived, self._filled, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._enough = limit
        self._room.set()

    def __len__(self) -> int:
        return len(self._waiting)

    def connect(self, app: Any) -> None:
        """Have each consumer that a Faust app makes put its messages here."""
        new_consumer = app._new_consumer

        def connected() -> Any:
            consumer = new_consumer()
            consumer._drain_messages = partial(self._drain, consumer)
            consumer._wait_next_records = partial(_all_fetched, consumer._wait_next_records)
            return consumer

        app._new_consumer = connected

    def clear(self) -> None:
        """Drop what waits: partitions have changed hands, and it will be read again."""
        self._waiting.clear()
        self._bytes = 0
        self._note()

    async def batches(self, rows: int, seconds: float) -> AsyncIterator[list[Any]]:
        """Yield messages for ever, at most ``rows`` at once, ``seconds`` after the first was read.

        Each holds a reference of ours: it is acknowledged by ``message.ack(consumer)``.
        """
        self._enough = rows
        while True:
            await self._arrived.wait()
            if not self._waiting:  # cleared since the event was set
                continue
            left = self._waiting[0].time_in + seconds - time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._filled.wait(), max(0.0, left))
            batch = [self._waiting.popleft() for _ in range(min(rows, len(self._waiting)))]
            self._bytes -= sum(map(_size, batch))
            self._note()
            if batch:
                yield batch

    async def _drain(self, consumer: Any, fetcher: Any) -> None:
        """Take the place of the consumer's method of this name, in Faust's fetcher service."""
        try:
            while not (consumer._stopped.is_set() or fetcher._stopped.is_set()):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), POLL_SECONDS)
                if self._room.is_set():
                    async for place, message in consumer.getmany(timeout=POLL_SECONDS):
                        await self._take(consumer, place, message)
                    self._note()
                await asyncio.sleep(0)
        except (asyncio.CancelledError, *consumer.consumer_stopped_errors):
            if not consumer.transport.app.should_stop:
                raise

    async def _take(self, consumer: Any, place: Any, message: Any) -> None:
        """Note that a message was read, as Faust does, and keep it."""
        offset, last = message.offset, consumer._read_offset[place]
        if last is not None and offset < last:
            return  # read before
        topics = consumer.app.topics
        if last and offset - last > 1 and topics.acks_enabled_for(message.topic):
            await consumer._add_gap(place, last + 1, offset)
        consumer._read_offset[place] = offset
        message.incref()
        consumer.track_message(message)
        # What Faust's own check of stalled streams goes by.
        consumer.app.monitor.stream_inbound_time[place] = message.time_in
        self._waiting.append(message)
        self._bytes += _size(message)

    def _note(self) -> None:
        waiting = len(self._waiting)
        for event, holds in (
            (self._arrived, waiting > 0),
            (self._filled, waiting >= self._enough or self._bytes >= MAX_BYTES),
            (self._room, waiting < self._limit and self._bytes < MAX_BYTES),
        ):
            if holds:
                event.set()
            else:
                event.clear()


def _size(message: Any) -> int:
    return len(message.value or b"")


async def _all_fetched(wait_next_records: Any, seconds: float) -> tuple[Any, None]:
    """Take the place of the consumer's method of this name, of which `getmany` asks what to yield.

    Of a partition that was paused during a fetch it would drop what the fetch brought, and nobody
    would seek back. None stands for all partitions.
    """
    records, _ = await wait_next_records(seconds)
    return records, None
