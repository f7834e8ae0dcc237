"""The topics as the broker has them beside the table that declares them."""

from __future__ import annotations

from msgspec import Struct

from console.table import table
from contracts.settings import Kafka
from contracts.topics import TOPICS


class TopicRow(Struct, frozen=True, kw_only=True):
    """One topic; ``records`` is None when the broker does not have it."""

    topic: str
    key: str
    writers: str
    readers: str
    cleanup: str
    ends: dict[int, int]
    records: int | None


def topic_rows(kafka: Kafka) -> list[TopicRow]:
    """Return every topic of the table with its end offset per partition."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, client_id="headrace-topics")
    try:
        rows = []
        for topic in TOPICS:
            name = topic.full_name(kafka.prefix)
            numbers = sorted(consumer.partitions_for_topic(name) or ())
            places = [TopicPartition(name, number) for number in numbers]
            ends = {p.partition: end for p, end in consumer.end_offsets(places).items()}
            firsts = consumer.beginning_offsets(places)
            rows.append(
                TopicRow(
                    topic=name,
                    key=topic.key_name,
                    writers=topic.writers,
                    readers=topic.readers,
                    cleanup=topic.cleanup,
                    ends=ends,
                    records=sum(ends.values()) - sum(firsts.values()) if places else None,
                )
            )
        return rows
    finally:
        consumer.close()


def topics_text(rows: list[TopicRow]) -> str:
    """Return the table for people."""
    heads = ("topic", "key", "writers", "readers", "cleanup", "end per partition", "records")
    return table(
        heads,
        [
            (
                row.topic,
                row.key,
                row.writers,
                row.readers,
                row.cleanup,
                " ".join(str(row.ends[n]) for n in sorted(row.ends)) or "missing",
                row.records,
            )
            for row in rows
        ],
    )
