"""Offsets: where a log begins, where it ends, and how far a reader has come."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition as Place
from kafka import KafkaConsumer, TopicPartition

from contracts.broker import Reader
from contracts.settings import Kafka
from tests.broker_contract.clients import (
    ACK_SECONDS,
    admin_client,
    group_member,
    make_topic,
    numbered,
    producer,
    publish,
    read_all,
    streams_producer,
    take,
)
from tests.until import until

BEGIN_MS = 1_700_000_000_000


async def the_end_offsets_count_every_record_acknowledged_and_no_other(kafka: Kafka) -> None:
    """Asked at once after the last acknowledgement, by both kinds of client."""
    topic = make_topic(kafka, partitions=4)
    name = topic.full_name(kafka.prefix)

    async def stream(begin: int) -> None:
        async with streams_producer(kafka) as made:
            records = numbered(topic, range(begin, begin + 400))
            acks = [await made.send(name, record.value, key=record.key) for record in records]
            await asyncio.gather(*acks)

    await asyncio.gather(
        asyncio.to_thread(publish, kafka, numbered(topic, range(400))),
        asyncio.to_thread(publish, kafka, numbered(topic, range(400, 800))),
        stream(800),
        stream(1200),
    )
    reader = Reader(kafka, (topic,), "contract-reader")
    try:
        ends = reader.ends()
    finally:
        reader.close()
    assert sum(ends.values()) == 1600
    async with group_member(kafka, [topic]) as member:
        seen = await member.end_offsets([Place(name, n) for n in range(4)])
    assert {f"{topic.name}/{place.partition}": end for place, end in seen.items()} == ends
    assert sorted(int(record.value or b"") for record in read_all(kafka, topic)) == [*range(1600)]


def each_acknowledgement_shows_in_the_end_offset_at_once(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    reader = Reader(kafka, (topic,), "contract-reader")
    try:
        with producer(kafka) as made:
            for number in range(50):
                made.send(topic.full_name(kafka.prefix), b"%d" % number).get(timeout=ACK_SECONDS)
                assert reader.ends() == {"numbers/0": number + 1}
    finally:
        reader.close()


def a_fetch_tells_how_much_is_unread(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    publish(kafka, numbered(topic, range(1500)))
    reader = Reader(kafka, (topic,), "contract-reader")
    try:
        read = 0
        while read < 1500:
            read += len(reader.poll(5.0))
            assert reader.lag() == 1500 - read
    finally:
        reader.close()


async def the_beginning_moves_with_the_records_deleted(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    publish(kafka, numbered(topic, range(20)))
    with admin_client(kafka) as admin:
        admin.delete_records({TopicPartition(name, 0): 8})
    reader = Reader(kafka, (topic,), "contract-reader", {"numbers/0": 3})
    try:
        assert reader.positions() == {"numbers/0": 8}
        assert reader.ends() == {"numbers/0": 20}
    finally:
        reader.close()
    async with group_member(kafka, [topic]) as member:
        assert await member.beginning_offsets([Place(name, 0)]) == {Place(name, 0): 8}
        assert [record.offset for record in await take(member, 12)] == [*range(8, 20)]


def a_reader_begins_at_any_offset_it_is_given(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    publish(kafka, numbered(topic, range(30)))
    for begin in (0, 17, 29, 30):
        reader = Reader(kafka, (topic,), "contract-reader", {"numbers/0": begin})
        try:
            found = [] if begin == 30 else _read(reader, 30 - begin)
            assert found == [*range(begin, 30)]
            assert reader.positions() == reader.ends() == {"numbers/0": 30}
        finally:
            reader.close()


def offsets_are_found_by_time(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    place = TopicPartition(topic.full_name(kafka.prefix), 0)
    with producer(kafka) as made:
        for number in range(10):
            made.send(place.topic, b"%d" % number, timestamp_ms=BEGIN_MS + 1000 * number)
        made.flush(ACK_SECONDS)
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=None)
    try:
        for milliseconds, offset in ((0, 0), (3000, 3), (3001, 4), (9000, 9)):
            found = consumer.offsets_for_times({place: BEGIN_MS + milliseconds})[place]
            assert found is not None
            assert found.offset == offset
            assert found.timestamp == BEGIN_MS + 1000 * offset
        assert consumer.offsets_for_times({place: BEGIN_MS + 9001})[place] is None
    finally:
        consumer.close()


def _read(reader: Reader, count: int) -> list[int]:
    found: list[int] = []

    def enough() -> bool:
        found.extend(record.offset for record in reader.poll(0.2))
        return len(found) >= count

    until(f"{count} records", enough, state=lambda: found)
    return found
