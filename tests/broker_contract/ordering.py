"""The log of a partition: one order, told to those who write and to those who read."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError as LostByAiokafka
from aiokafka.protocol.produce import ProduceRequest
from kafka.errors import KafkaConnectionError as LostByKafkaPython

from contracts.broker import send
from contracts.settings import Kafka
from contracts.topics import Topic
from tests.broker_contract.clients import (
    ACK_SECONDS,
    make_topic,
    numbered,
    producer,
    publish,
    read_all,
    streams_producer,
)

EACH = 300


async def what_one_producer_writes_keeps_its_order_while_others_write(kafka: Kafka) -> None:
    topic = make_topic(kafka, partitions=3)
    await _four_producers(kafka, topic)
    offsets: dict[int, int] = {}
    places: dict[bytes | None, set[int]] = defaultdict(set)
    order: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for record in read_all(kafka, topic):
        assert record.offset > offsets.get(record.partition, -1)
        offsets[record.partition] = record.offset
        places[record.key].add(record.partition)
        writer, number = (record.value or b"").split(b"/")
        order[writer, record.partition].append(int(number))
    assert sum(map(len, order.values())) == 4 * EACH
    assert {len(partitions) for partitions in places.values()} == {1}
    assert all(numbers == sorted(numbers) for numbers in order.values())


def the_offset_acknowledged_is_where_the_record_stands(kafka: Kafka) -> None:
    topic = make_topic(kafka, partitions=3)
    acks = publish(kafka, numbered(topic, range(100)))
    told = {(ack.partition, ack.offset): b"%d" % n for n, ack in enumerate(acks)}
    assert told == {(r.partition, r.offset): r.value for r in read_all(kafka, topic)}


async def a_batch_that_aiokafka_sends_again_is_there_once(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    async with streams_producer(kafka) as made:
        for number in range(3):
            await made.send_and_wait(name, b"%d" % number)
        sent = _lose_one_acknowledgement(made)
        for number in range(3, 6):
            await made.send_and_wait(name, b"%d" % number)
    assert len(sent) == 4, "one of three batches goes out twice"
    assert [record.value for record in read_all(kafka, topic)] == [b"%d" % n for n in range(6)]


def a_batch_that_kafka_python_sends_again_is_there_once(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    with producer(kafka) as made:
        answered: list[Any] = []
        handle, fail = made._sender._handle_produce_response, made._sender._failed_produce

        def lose_the_second(node: int, since: float, batches: Any, response: Any) -> None:
            answered.append(response)
            if len(answered) == 2:
                fail(batches, node, LostByKafkaPython("acknowledgement lost by the test"))
            else:
                handle(node, since, batches, response)

        made._sender._handle_produce_response = lose_the_second
        for record in numbered(topic, range(4)):
            send(made, kafka, record).get(timeout=ACK_SECONDS)
    assert len(answered) == 5, "one of four batches goes out twice"
    assert [record.value for record in read_all(kafka, topic)] == [b"0", b"1", b"2", b"3"]


def _lose_one_acknowledgement(made: AIOKafkaProducer) -> list[Any]:
    """Have the client believe that the first batch from here failed; return what it sends."""
    sent: list[Any] = []
    original = made.client.send

    async def losing(node: int, request: Any, **options: Any) -> Any:
        answer = await original(node, request, **options)
        if isinstance(request, ProduceRequest):
            sent.append(request)
            if len(sent) == 1:
                raise LostByAiokafka("acknowledgement lost by the test")
        return answer

    made.client.send = losing
    return sent


async def _four_producers(kafka: Kafka, topic: Topic) -> None:
    """Write from two producers of each kind at once, each ``EACH`` records on all partitions."""
    await asyncio.gather(
        asyncio.to_thread(_write, kafka, topic, b"a"),
        asyncio.to_thread(_write, kafka, topic, b"b"),
        _write_as_streams(kafka, topic, b"c"),
        _write_as_streams(kafka, topic, b"d"),
    )


def _write(kafka: Kafka, topic: Topic, writer: bytes) -> None:
    records = numbered(topic, range(EACH))
    name = topic.full_name(kafka.prefix)
    with producer(kafka) as made:
        futures = [
            made.send(name, value=writer + b"/" + record.value, key=record.key)
            for record in records
        ]
        for future in futures:
            future.get(timeout=ACK_SECONDS)


async def _write_as_streams(kafka: Kafka, topic: Topic, writer: bytes) -> None:
    name = topic.full_name(kafka.prefix)
    async with streams_producer(kafka) as made:
        acks = [
            await made.send(name, writer + b"/" + record.value, key=record.key)
            for record in numbered(topic, range(EACH))
        ]
        await asyncio.gather(*acks)
