"""Header names that are no UTF-8, as clients in other languages can send them, stop nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from kafka import KafkaProducer

from contracts.broker import make_producer
from contracts.codec import encode
from contracts.settings import Kafka
from contracts.topics import DECISIONS, FEEDBACK
from streams.header_names import read_any_header_name
from tests.poison import RawName

ODD: list[tuple[str, bytes]] = [(RawName(b"odd\xff"), b"1")]


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_a_consumer_reads_all_records_around_odd_names(
    kafka: Kafka, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "MemoryRecords", fetcher.MemoryRecords)
    read_any_header_name()
    place = TopicPartition(FEEDBACK.full_name(kafka.prefix), 0)
    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap, compression_type=compression, linger_ms=20
    )
    for number in range(60):
        headers = ODD if number % 4 == 1 else [("good", b"1")]
        producer.send(place.topic, value=b"%d" % number, headers=headers, partition=0)
    producer.flush(30)
    producer.close()
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
    await consumer.start()
    try:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        found: list[Any] = []
        async with asyncio.timeout(30.0):
            while len(found) < 60:
                batches = await consumer.getmany(place, timeout_ms=500, max_records=7)
                found += batches.get(place, [])
    finally:
        await consumer.stop()
    assert [record.value for record in found] == [b"%d" % number for number in range(60)]
    assert [record.offset for record in found] == list(range(60))
    assert {record.headers for record in found} == {(("odd\\xff", b"1"),), (("good", b"1"),)}


def test_a_worker_refuses_such_a_record_or_takes_it_as_its_value_says(
    streams: Any, decision: Any
) -> None:
    worker = streams(window_seconds=60.0)
    producer = make_producer(worker.settings.kafka, "test")
    sound = encode(DECISIONS, decision(), source="test")
    name = DECISIONS.full_name(worker.settings.kafka.prefix)
    for value in (b"{", sound.value):
        producer.send(name, key=sound.key, value=value, headers=[*sound.headers, *ODD])
    producer.flush(30)
    producer.close()
    worker.start()
    worker.until("the refused", lambda: worker.count("dead_letters") == 1)
    worker.until("the decision", lambda: worker.count("decisions") == 1)
    assert worker.stop() == 0
