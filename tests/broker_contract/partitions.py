"""Topics: made as asked, seen by every client alike."""

from __future__ import annotations

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import TopicAlreadyExistsError

from contracts.broker import create_topics
from contracts.settings import Kafka
from contracts.topics import AUDIT, TOPICS, Topic
from tests.broker_contract.clients import admin_client, make_topic, producer, streams_producer

KEYS = [b"", b"0", b"session-17", "größe".encode(), *(b"key-%d" % n for n in range(60))]


def a_topic_has_the_partitions_it_was_made_with(kafka: Kafka) -> None:
    create_topics(kafka)
    with admin_client(kafka) as admin:
        admin.wait_for_topics([topic.full_name(kafka.prefix) for topic in TOPICS])
        for topic in TOPICS:
            (described,) = admin.describe_topics([topic.full_name(kafka.prefix)])
            assert len(described["partitions"]) == (topic.partitions or kafka.partitions)


def a_topic_keeps_the_cleanup_policy_and_retention_it_was_made_with(kafka: Kafka) -> None:
    create_topics(kafka)
    with admin_client(kafka) as admin:
        admin.wait_for_topics([topic.full_name(kafka.prefix) for topic in TOPICS])
        for topic in TOPICS:
            assert _config(admin, kafka, topic, "cleanup.policy") == topic.cleanup
        assert _config(admin, kafka, AUDIT, "retention.ms") == "-1"
        assert _config(admin, kafka, AUDIT, "retention.bytes") == "-1"


def a_topic_that_is_there_is_not_made_again(kafka: Kafka) -> None:
    name = make_topic(kafka, partitions=2).full_name(kafka.prefix)
    with admin_client(kafka) as admin:
        with pytest.raises(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(name, 5, kafka.replication)])
        assert len(admin.describe_topics([name])[0]["partitions"]) == 2


def metadata_name_the_replicas_of_a_partition_and_those_in_sync(kafka: Kafka) -> None:
    name = make_topic(kafka, partitions=2).full_name(kafka.prefix)
    with admin_client(kafka) as admin:
        (described,) = admin.describe_topics([name])
    for partition in described["partitions"]:
        assert len(partition["replica_nodes"]) == kafka.replication
        assert set(partition["isr_nodes"]) <= set(partition["replica_nodes"])
        assert partition["leader_id"] in partition["isr_nodes"]


async def a_key_has_one_partition_whichever_client_writes_it(kafka: Kafka) -> None:
    name = make_topic(kafka, partitions=7).full_name(kafka.prefix)
    with producer(kafka) as made:
        futures = [made.send(name, value=b"1", key=key) for key in KEYS]
        ours = [future.get(timeout=30).partition for future in futures]
    async with streams_producer(kafka) as other:
        theirs = [(await other.send_and_wait(name, b"2", key=key)).partition for key in KEYS]
    assert ours == theirs
    assert len(set(ours)) == 7


def _config(admin: KafkaAdminClient, kafka: Kafka, topic: Topic, name: str) -> str:
    full_name = topic.full_name(kafka.prefix)
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, full_name)])
    return str(found["topic"][full_name][name]["value"])
