"""Compacted topics: the newest record of a key stays."""

from __future__ import annotations

from contracts.codec import Record
from contracts.settings import Kafka
from tests.broker_contract.clients import make_topic, named, publish, read_all

KEYS = 5
VERSIONS = 60


def reading_a_compacted_topic_ends_with_the_newest_record_of_each_key(kafka: Kafka) -> None:
    """Whether older ones are still there or not."""
    topic = make_topic(kafka, named(cleanup="compact"))
    written = [(b"key-%d" % (n % KEYS), b"%d" % n) for n in range(KEYS * VERSIONS)]
    publish(kafka, [Record(topic, key, value, []) for key, value in written])
    read = [(record.key, record.value) for record in read_all(kafka, topic)]
    assert dict(read) == dict(written)
    assert [int(value or b"") for _, value in read] == sorted(
        int(value or b"") for _, value in read
    )
