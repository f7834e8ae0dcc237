"""Transactions. Nothing of Headrace uses them; the cases tell what a broker claims."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from aiokafka import TopicPartition as Place

from contracts.settings import Kafka
from tests.broker_contract.clients import group_member, group_name, make_topic, take


async def what_an_aborted_transaction_wrote_is_not_read_as_committed(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    async with _transactional(kafka) as made:
        await made.begin_transaction()
        await made.send_and_wait(name, b"aborted")
        await made.abort_transaction()
        async with made.transaction():
            await made.send_and_wait(name, b"committed")
    async with group_member(kafka, [topic], isolation_level="read_committed") as member:
        (record,) = await take(member, 1)
        assert record.value == b"committed"


async def what_an_open_transaction_wrote_is_not_read_as_committed(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    name = topic.full_name(kafka.prefix)
    async with _transactional(kafka) as made:
        async with made.transaction():
            await made.send_and_wait(name, b"committed")
        await made.begin_transaction()
        await made.send_and_wait(name, b"open")
        async with group_member(kafka, [topic], isolation_level="read_committed") as member:
            await take(member, 1)
            assert await member.getmany(timeout_ms=500) == {}
        await made.commit_transaction()


async def offsets_are_committed_with_their_transaction(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    place = Place(topic.full_name(kafka.prefix), 0)
    async with _transactional(kafka) as made:
        for offset, ends in ((3, made.commit_transaction), (5, made.abort_transaction)):
            await made.begin_transaction()
            await made.send_offsets_to_transaction({place: offset}, group_name(kafka))
            await ends()
    async with group_member(kafka, [topic]) as member:
        assert await member.committed(place) == 3


@asynccontextmanager
async def _transactional(kafka: Kafka) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, transactional_id=f"{kafka.prefix}transactions"
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
