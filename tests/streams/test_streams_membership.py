"""A real consumer whose place in its group is refused: it comes back as itself, or as new."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError
from kafka import KafkaAdminClient

from console.local_broker import remove_dead_members
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import DECISIONS
from streams.membership import keep_member_id
from tests.until import until_async


@asynccontextmanager
async def member(kafka: Kafka, group: str) -> AsyncIterator[Any]:
    consumer: Any = AIOKafkaConsumer(
        DECISIONS.full_name(kafka.prefix),
        bootstrap_servers=kafka.bootstrap,
        group_id=group,
        enable_auto_commit=False,
        heartbeat_interval_ms=200,
    )
    await consumer.start()
    keep_member_id(consumer._coordinator)
    try:
        yield consumer
    finally:
        await consumer.stop()


def members(kafka: Kafka, group: str) -> tuple[str, list[str]]:
    """Return the state of a group and its members' ids."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="test-members")
    try:
        found = admin.describe_groups([group])[group]
        return found["group_state"], [one["member_id"] for one in found["members"]]
    finally:
        admin.close()


async def test_a_member_whose_generation_was_refused_joins_again_as_itself(
    kafka: Kafka, new_id: NewId
) -> None:
    place, group = TopicPartition(DECISIONS.full_name(kafka.prefix), 0), new_id()
    async with member(kafka, group) as consumer:
        coordinator = consumer._coordinator
        before, coordinator.generation = coordinator.generation, 9999
        own_id = coordinator.member_id
        with pytest.raises(CommitFailedError):
            await consumer.commit({place: 0})
        await until_async("joined again", lambda: before < coordinator.generation < 9999)
        await until_async("the group", lambda: members(kafka, group) == ("Stable", [own_id]))


async def test_a_member_that_the_broker_does_not_know_joins_as_a_new_one(
    kafka: Kafka, new_id: NewId
) -> None:
    group = new_id()
    async with member(kafka, group) as consumer:
        own_id = consumer._coordinator.member_id
        remove_dead_members(kafka.bootstrap, group, lambda _: True)

        def is_new() -> bool:
            state, ids = members(kafka, group)
            return state == "Stable" and len(ids) == 1 and ids != [own_id]

        await until_async("a new member alone", is_new)
