"""What a broker still has after it was stopped and started as the stack does it."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import TopicPartition as Place

from contracts.broker import Reader
from contracts.settings import Kafka
from tests.broker_contract.clients import (
    admin_client,
    group_member,
    make_topic,
    numbered,
    publish,
    read_all,
    take,
)


async def what_was_acknowledged_is_there_after_a_restart(
    kafka: Kafka, restart: Callable[[], None]
) -> None:
    """Records at their offsets, topics with their partitions, what groups committed; and the
    log goes on where it ended."""
    topic = make_topic(kafka, partitions=3)
    name = topic.full_name(kafka.prefix)
    publish(kafka, numbered(topic, range(500)))
    before = {(r.partition, r.offset): (r.key, r.value) for r in read_all(kafka, topic)}
    async with group_member(kafka, [topic]) as member:
        read = await take(member, 100)
        done = {Place(name, r.partition): r.offset + 1 for r in read}
        await member.commit(done)
    restart()
    with admin_client(kafka) as admin:
        assert len(admin.describe_topics([name])[0]["partitions"]) == 3
    assert {(r.partition, r.offset): (r.key, r.value) for r in read_all(kafka, topic)} == before
    async with group_member(kafka, [topic]) as member:
        assert {place: await member.committed(place) for place in done} == done
        publish(kafka, numbered(topic, range(500, 510)))
        unread = {int(record.value) for record in await take(member, 410)}
    assert unread == set(range(510)) - {int(record.value) for record in read}
    reader = Reader(kafka, (topic,), "contract-reader")
    try:
        assert sum(reader.ends().values()) == 510
    finally:
        reader.close()
