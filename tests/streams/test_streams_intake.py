"""A real Faust app on the real broker: what it reads comes in batches, bounded, each once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.broker import create_topics
from contracts.codec import encode
from contracts.settings import Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK
from streams import intake as intake_module
from streams.intake import Intake
from streams.worker import make_app
from tests.topic_log import write
from tests.until import until_async

RECORDS, ROWS, LIMIT = 400, 7, 20
POLLED = 30
"""Faust's consumer hands over so many at once: the bound is kept to within them."""


async def test_messages_wait_up_to_a_bound_and_are_acknowledged_by_whoever_took_them(
    broker: LocalBroker, decision: Any, tmp_path: Path
) -> None:
    kafka = msgspec.structs.replace(broker.kafka, prefix="intake.", partitions=2)
    create_topics(kafka)
    made = [decision(session_id=f"session-{number % 9}") for number in range(RECORDS)]
    write(kafka, *(encode(DECISIONS, one, source="test") for one in made))
    settings = Settings(state_dir=tmp_path, kafka=kafka, streams=Streams(flush_rows=POLLED))
    app = make_app(settings, "intake-test", 1)
    intake, may_go_on, taken = Intake(LIMIT), asyncio.Event(), list[Any]()
    intake.connect(app)
    name = DECISIONS.full_name(kafka.prefix)

    async def take(_: Any) -> None:
        async for messages in intake.batches(ROWS, 0.01):
            assert 0 < len(messages) <= ROWS
            assert len(intake) < LIMIT + POLLED
            taken.extend(messages)
            await may_go_on.wait()

    raw = {"key_serializer": "raw", "value_serializer": "raw"}
    app.agent(app.topic(name, key_type=bytes, value_type=bytes, internal=False, **raw))(take)
    await app.start()
    try:
        await until_async("room to run out", lambda: not intake._room.is_set(), 60.0)
        assert len(taken) == ROWS
        may_go_on.set()
        await until_async("all to be taken", lambda: len(taken) == RECORDS, 60.0)
        assert all(app.monitor.stream_inbound_time[message.tp] > 0 for message in taken)
        offsets: dict[int, list[int]] = defaultdict(list)
        for message in taken:
            offsets[message.partition].append(message.offset)
        assert {n: list(range(len(of))) for n, of in offsets.items()} == offsets
        for message in taken:
            assert message.ack(app.consumer)
        wanted = {number: len(of) for number, of in offsets.items()}
        committed = app.consumer._committed_offset
        await until_async(
            "all to be committed",
            lambda: wanted == {p.partition: o for p, o in committed.items() if p.topic == name},
            state=lambda: committed,
        )
    finally:
        await app.stop()


async def test_large_records_that_wait_are_bounded_by_their_bytes(
    broker: LocalBroker, decision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "MAX_BYTES", 1 << 20)
    kafka = msgspec.structs.replace(broker.kafka, prefix="large.", partitions=1)
    create_topics(kafka)
    large = decision(answer="x" * 400_000)  # stands in it twice
    await asyncio.to_thread(write, kafka, *[encode(DECISIONS, large, source="test")] * 24)
    settings = Settings(state_dir=tmp_path, kafka=kafka, streams=Streams(flush_rows=5))
    app = make_app(settings, "large-test", 1)
    intake, may_go_on, taken = Intake(LIMIT * LIMIT), asyncio.Event(), list[int]()
    intake.connect(app)

    async def take(_: Any) -> None:
        await may_go_on.wait()
        async for messages in intake.batches(ROWS, 0.01):
            taken.extend(message.offset for message in messages)

    name, raw = DECISIONS.full_name(kafka.prefix), {"key_serializer": "raw"}
    app.agent(app.topic(name, key_type=bytes, value_type=bytes, internal=False, **raw))(take)
    await app.start()
    try:
        await until_async("room to run out", lambda: not intake._room.is_set(), 60.0)
        assert 0 < len(intake) < 12
        may_go_on.set()
        await until_async("all", lambda: taken == list(range(24)), 60.0, state=lambda: taken)
        assert intake._bytes == 0
    finally:
        await app.stop()


async def test_what_waits_is_dropped_when_partitions_change_hands() -> None:
    intake = Intake(2)
    for _ in range(3):
        intake._waiting.append(object())
    intake._bytes = intake_module.MAX_BYTES
    intake.clear()
    assert len(intake) == 0
    assert intake._room.is_set()


async def test_what_a_fetch_brought_is_read_though_its_partition_was_paused_meanwhile(
    broker: LocalBroker, decision: Any, tmp_path: Path
) -> None:
    kafka = msgspec.structs.replace(broker.kafka, prefix="paused.", partitions=1)
    create_topics(kafka)
    settings = Settings(state_dir=tmp_path, kafka=kafka)
    app = make_app(settings, "paused-test", 1)
    intake, taken, paused = Intake(LIMIT), list[int](), asyncio.Event()
    intake.connect(app)
    names = [topic.full_name(kafka.prefix) for topic in (DECISIONS, FEEDBACK)]
    new_consumer = app._new_consumer

    def pausing() -> Any:
        consumer = new_consumer()
        fetch = consumer._getmany

        async def fetched(**asked: Any) -> Any:
            found = await fetch(**asked)
            if found and not paused.is_set():  # the timer's turn comes before that of the records
                consumer.pause_partitions({p for p in consumer.assignment() if p.topic == names[0]})
                paused.set()
            return found

        consumer._getmany = fetched
        return consumer

    app._new_consumer = pausing

    async def take(_: Any) -> None:
        async for messages in intake.batches(ROWS, 0.01):
            taken.extend(message.offset for message in messages)

    async def publish() -> None:
        record = encode(DECISIONS, decision(), source="test")
        await asyncio.to_thread(write, kafka, record)

    raw = {"key_serializer": "raw", "value_serializer": "raw", "internal": False}
    app.agent(app.topic(*names, key_type=bytes, value_type=bytes, **raw))(take)
    await app.start()
    try:
        await publish()
        await asyncio.wait_for(paused.wait(), 60.0)
        app.consumer.resume_partitions(
            {p for p in app.consumer.assignment() if p.topic == names[0]}
        )
        await publish()
        await until_async("both", lambda: taken == [0, 1], 30.0, state=lambda: taken)
    finally:
        await app.stop()
