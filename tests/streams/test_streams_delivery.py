"""What is delivered lies where every client would put it, in order, whatever its size."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from console.local_broker import LocalBroker
from contracts.broker import create_topics, make_producer, read_to_end, send_and_wait
from contracts.clock import SystemClock
from contracts.codec import Record
from contracts.ids import uuid7_ids
from contracts.settings import Kafka
from contracts.topics import AUDIT, REWARDS, SAMPLES
from streams.delivery import MAX_BATCH_BYTES, Delivery

COUNT = 3000


def _kafka(broker: LocalBroker) -> Kafka:
    prefix = f"t-{uuid7_ids(SystemClock())()}-"
    return msgspec.structs.replace(broker.kafka, prefix=prefix)


async def test_records_of_many_batches_come_whole_in_order_and_where_others_put_them(
    broker: LocalBroker,
) -> None:
    kafka = _kafka(broker)
    create_topics(kafka)
    topics = (REWARDS, SAMPLES, AUDIT)
    records = [
        Record(
            topics[number % 3],
            f"session-{number % 40}".encode(),
            b"%d " % number + b"x" * (600 if number % 100 else MAX_BATCH_BYTES),
            [("ce_time", datetime.now(UTC).isoformat().encode())],
        )
        for number in range(COUNT)
    ]
    delivery = Delivery(kafka, "delivery-test")
    await delivery.send(records)
    await delivery.close()
    wanted: dict[Any, list[Any]] = defaultdict(list)
    found: dict[Any, list[Any]] = defaultdict(list)
    places: dict[Any, set[int]] = defaultdict(set)
    for record in records:
        wanted[record.topic.name, record.key].append((record.value, record.headers))
    for read in read_to_end(kafka, topics, "delivery-test"):
        found[read.topic.name, read.key].append((read.value, read.headers))
        places[read.topic.name, read.key].add(read.partition)
    assert found == wanted
    producer = make_producer(kafka, "delivery-test")
    for topic in topics:
        send_and_wait(producer, kafka, Record(topic, b"session-7", b"{}", []))
    producer.close()
    for read in read_to_end(kafka, topics, "delivery-test"):
        places[read.topic.name, read.key].add(read.partition)
    assert {len(partitions) for partitions in places.values()} == {1}


async def test_a_record_too_large_for_its_topic_costs_only_itself(broker: LocalBroker) -> None:
    kafka = _kafka(broker)
    name = SAMPLES.full_name(kafka.prefix)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    limit = {"max.message.bytes": "2000"}
    admin.create_topics([NewTopic(name, 1, 1, topic_configs=limit)])
    admin.close()
    values = [b"%d" % number * (1 if number != 5 else 4_000_000) for number in range(10)]
    delivery = Delivery(kafka, "delivery-test")
    await delivery.send([Record(SAMPLES, b"one", value, []) for value in values])
    await delivery.close()
    found = [read.value for read in read_to_end(kafka, (SAMPLES,), "delivery-test")]
    assert found == [value for value in values if len(value) == 1]


class LowLimit(AIOKafkaProducer):  # type: ignore[misc] # it ships no types
    """A producer to a broker that takes no batch of several records."""

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:
        if batch.record_count() > 1:
            raise MessageSizeTooLargeError
        return await super().send_batch(batch, topic, partition=partition)


async def test_a_batch_too_large_for_the_broker_is_sent_record_by_record(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = _kafka(broker)
    create_topics(kafka)
    monkeypatch.setattr("streams.delivery.AIOKafkaProducer", LowLimit)
    values = [b"%d" % number for number in range(20)]
    delivery = Delivery(kafka, "delivery-test")
    await delivery.send([Record(SAMPLES, b"one", value, []) for value in values])
    await delivery.close()
    assert [read.value for read in read_to_end(kafka, (SAMPLES,), "delivery-test")] == values
