"""Topics, records and clients of the cases, made as the product makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaProducer

from contracts.broker import Received, create_topics, make_producer, read_to_end, send
from contracts.codec import Record
from contracts.events import Feedback
from contracts.settings import Kafka
from contracts.topics import Topic
from streams.delivery import Delivery

ACK_SECONDS = 30.0


@contextmanager
def admin_client(kafka: Kafka) -> Iterator[KafkaAdminClient]:
    """Give an admin client."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="contract-admin")
    try:
        yield admin
    finally:
        admin.close()


def named(
    name: str = "numbers", partitions: int = 1, cleanup: Literal["delete", "compact"] = "delete"
) -> Topic:
    """Return a topic of the cases; no event is written to it, its records are bytes."""
    return Topic(
        name=name,
        events=(Feedback,),
        key=str,
        key_name="number",
        writers="tests",
        readers="tests",
        cleanup=cleanup,
        partitions=partitions,
    )


def make_topic(kafka: Kafka, topic: Topic | None = None, partitions: int = 1) -> Topic:
    """Create a topic by the product's own call and wait until every partition has a leader."""
    topic = topic or named(partitions=partitions)
    create_topics(kafka, [topic])
    with admin_client(kafka) as admin:
        admin.wait_for_topics([topic.full_name(kafka.prefix)])
    return topic


def numbered(topic: Topic, numbers: Iterable[int], key: bytes | None = None) -> list[Record]:
    """Return records with a number as value, and as key where none is given."""
    return [Record(topic, str(n).encode() if key is None else key, b"%d" % n, []) for n in numbers]


@contextmanager
def producer(kafka: Kafka) -> Iterator[KafkaProducer]:
    """Give the producer of gateway, learner and rollout controller."""
    made = make_producer(kafka, "contract-producer")
    try:
        yield made
    finally:
        made.close(timeout=ACK_SECONDS)


def publish(kafka: Kafka, records: Iterable[Record]) -> list[Any]:
    """Send records, wait for all acknowledgements and return them."""
    with producer(kafka) as made:
        futures = [send(made, kafka, record) for record in records]
        return [future.get(timeout=ACK_SECONDS) for future in futures]


async def deliver(kafka: Kafka, records: Sequence[Record]) -> None:
    """Send records as a streams worker does and wait for all acknowledgements."""
    delivery = Delivery(kafka, "contract-delivery")
    try:
        await delivery.send(records)
    finally:
        await delivery.close()


@asynccontextmanager
async def streams_producer(kafka: Kafka) -> AsyncIterator[AIOKafkaProducer]:
    """Give the producer of a streams worker, as `streams.delivery` opens it."""
    delivery = Delivery(kafka, "contract-delivery")
    try:
        yield await delivery._started()
    finally:
        await delivery.close()


@asynccontextmanager
async def group_member(
    kafka: Kafka, topics: Iterable[Topic], client_id: str = "contract-member", **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """Give a member of the consumer group `group_name`, as Faust opens it for a worker."""
    consumer = AIOKafkaConsumer(
        *(topic.full_name(kafka.prefix) for topic in topics),
        **{
            "bootstrap_servers": kafka.bootstrap,
            "client_id": client_id,
            "group_id": group_name(kafka),
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": 10_000,
            "heartbeat_interval_ms": 500,
            **options,
        },
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


def group_name(kafka: Kafka) -> str:
    """Return the one consumer group of a case."""
    return f"{kafka.prefix}group"


async def take(consumer: AIOKafkaConsumer, count: int) -> list[Any]:
    """Read until ``count`` records have come."""
    found: list[Any] = []
    while len(found) < count:
        batches = await consumer.getmany(timeout_ms=200, max_records=count - len(found))
        found += [record for records in batches.values() for record in records]
    return found


def read_all(kafka: Kafka, topic: Topic) -> list[Received]:
    """Return every record that is in a topic now."""
    return list(read_to_end(kafka, (topic,), "contract-reader"))
