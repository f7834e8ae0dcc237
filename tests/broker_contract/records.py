"""Records: what is in them arrives as it was, up to the size that we write."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from contracts.broker import create_topics
from contracts.codec import MAX_VALUE_BYTES, Record
from contracts.settings import Kafka
from contracts.topics import REWARDS, SAMPLES
from tests.broker_contract.clients import (
    admin_client,
    deliver,
    group_member,
    make_topic,
    named,
    publish,
    read_all,
    streams_producer,
    take,
)

HEADERS = [
    ("ce_id", b"0190"),
    ("traceparent", b"00-11-22-01"),
    ("twice", b"first"),
    ("twice", b"second"),
    ("empty", b""),
    ("bytes", bytes(range(256))),
]
KEY = b"k" * 128
SMALL_LIMIT = 100_000
"""Far below what the clients send, so that it is the broker which refuses."""

JUST_UNDER_1_MB = 1_000_000


async def headers_arrive_in_order_and_byte_for_byte(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    publish(kafka, [Record(topic, b"1", b"{}", HEADERS)])
    await deliver(kafka, [Record(topic, b"2", b"{}", HEADERS)])
    assert [record.headers for record in read_all(kafka, topic)] == [HEADERS, HEADERS]
    async with group_member(kafka, [topic]) as member:
        assert [list(record.headers) for record in await take(member, 2)] == [HEADERS, HEADERS]


async def a_value_or_key_that_is_missing_is_told_from_an_empty_one(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    written = [(b"k", None), (b"k", b""), (None, b"v"), (b"", b"v")]
    async with streams_producer(kafka) as made:
        for key, value in written:
            await made.send_and_wait(name, value, key=key)
    assert [(record.key, record.value) for record in read_all(kafka, topic)] == written
    async with group_member(kafka, [topic]) as member:
        assert [(record.key, record.value) for record in await take(member, 4)] == written


async def the_largest_value_that_we_write_is_taken_and_read(kafka: Kafka) -> None:
    """Also several at once: a client may put them into one request."""
    topic = make_topic(kafka, partitions=2)
    largest = [Record(topic, b"%d" % n + KEY, _bytes(MAX_VALUE_BYTES), HEADERS) for n in range(3)]
    publish(kafka, largest)
    await deliver(kafka, largest)
    read = [record.value for record in read_all(kafka, topic)]
    assert read == [_bytes(MAX_VALUE_BYTES)] * 6
    async with group_member(kafka, [topic]) as member:
        assert [record.value for record in await take(member, 6)] == read


def a_topic_has_the_brokers_time_where_it_was_made_so(kafka: Kafka) -> None:
    before = datetime.now(UTC)
    create_topics(kafka)
    for topic in (SAMPLES, REWARDS):
        name = topic.full_name(kafka.prefix)
        with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap)) as made:
            made.send(name, b"{}", timestamp_ms=FAR_AHEAD_MS).get(timeout=10.0)
    (stamped,), (written,) = read_all(kafka, SAMPLES), read_all(kafka, REWARDS)
    assert written.appended is None
    assert stamped.appended is not None
    assert timedelta(0) <= stamped.appended - before + CLOCKS_APART < timedelta(hours=1)


FAR_AHEAD_MS = 99_999_999_999_999
CLOCKS_APART = timedelta(minutes=1)


async def records_are_read_whatever_they_are_compressed_with(kafka: Kafka) -> None:
    """Who writes `feedback` from elsewhere chooses, and a broker may recompress a topic."""
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    values = [b"%d" % number * 1000 for number in range(8)]
    for value, (codec, client) in zip(values, product(CODECS, CLIENTS), strict=True):
        await client(kafka, name, value, codec)
    assert [record.value for record in read_all(kafka, topic)] == values
    async with group_member(kafka, [topic]) as member:
        assert [record.value for record in await take(member, len(values))] == values


async def _publish_compressed(kafka: Kafka, name: str, value: bytes, codec: str) -> None:
    made = KafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec)
    with closing(made):
        made.send(name, value).get(timeout=10.0)


async def _deliver_compressed(kafka: Kafka, name: str, value: bytes, codec: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec) as made:
        await made.send_and_wait(name, value)


CODECS = ("gzip", "snappy", "lz4", "zstd")
CLIENTS = (_publish_compressed, _deliver_compressed)


def a_value_just_under_1_mb_is_taken(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    publish(kafka, [Record(topic, KEY, _bytes(JUST_UNDER_1_MB), HEADERS)])
    (record,) = read_all(kafka, topic)
    assert record.value == _bytes(JUST_UNDER_1_MB)


async def a_value_over_the_limit_is_refused_by_name_and_nothing_else_is_lost(kafka: Kafka) -> None:
    topic = named()
    limit = {"max.message.bytes": str(SMALL_LIMIT)}
    name = topic.full_name(kafka.prefix)
    with admin_client(kafka) as admin:
        admin.create_topics([NewTopic(name, 1, kafka.replication, topic_configs=limit)])
        admin.wait_for_topics([name])
    too_large = Record(topic, KEY, _bytes(2 * SMALL_LIMIT), [])
    first, second, third, fourth = (Record(topic, KEY, b"%d" % n, []) for n in range(4))
    publish(kafka, [first])
    with pytest.raises((MessageSizeTooLargeError, RecordListTooLargeError)):
        publish(kafka, [too_large])
    publish(kafka, [second])
    await deliver(kafka, [third, too_large, fourth])
    assert [record.value for record in read_all(kafka, topic)] == [b"0", b"1", b"2", b"3"]


def _bytes(count: int) -> bytes:
    return b"x" * count
