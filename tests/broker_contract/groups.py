"""Consumer groups, as the streams workers form one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as Place

from console.local_broker import remove_dead_members
from contracts.settings import Kafka
from contracts.topics import Topic
from tests.broker_contract.clients import (
    admin_client,
    group_member,
    group_name,
    make_topic,
    named,
    numbered,
    publish,
    take,
)
from tests.until import until_async

REBALANCE_SECONDS = 30.0
SILENT = "contract-silent"
SHORTEST_SESSION_MS = 6000
"""The shortest that Apache Kafka allows unless told otherwise."""

TAKE_OVER_SECONDS = 12.0


async def members_share_the_partitions_and_take_over_those_of_one_that_leaves(kafka: Kafka) -> None:
    """Of two topics, as a worker reads ``decisions`` and ``feedback``."""
    topics = [make_topic(kafka, partitions=4), make_topic(kafka, named("letters", 4))]
    async with group_member(kafka, topics, "contract-stays") as stays:
        await _has(stays, 8)
        async with group_member(kafka, topics, "contract-leaves") as leaves:
            await _has(stays, 4)
            await _has(leaves, 4)
            assert not stays.assignment() & leaves.assignment()
        await _has(stays, 8)


async def a_member_takes_up_where_the_group_committed(kafka: Kafka) -> None:
    """One request commits the offsets of two topics; both hold for the next member."""
    first, second = make_topic(kafka), make_topic(kafka, named("letters"))
    publish(kafka, [*numbered(first, range(10)), *numbered(second, range(10))])
    places = [Place(topic.full_name(kafka.prefix), 0) for topic in (first, second)]
    async with group_member(kafka, [first, second]) as member:
        await take(member, 20)
        await member.commit(dict(zip(places, (4, 7), strict=True)))
    async with group_member(kafka, [first, second]) as member:
        assert [await member.committed(place) for place in places] == [4, 7]
        read = [int(record.value) for record in await take(member, 9)]
        assert sorted(read) == sorted([*range(4, 10), *range(7, 10)])


async def a_member_may_seek_back_and_read_again_from_the_beginning(kafka: Kafka) -> None:
    topic = make_topic(kafka)
    place = Place(topic.full_name(kafka.prefix), 0)
    publish(kafka, numbered(topic, range(20)))
    async with group_member(kafka, [topic]) as member:
        await take(member, 20)
        await member.commit({place: 20})
        member.seek(place, 0)
        assert [record.offset for record in await take(member, 20)] == [*range(20)]
        assert await member.committed(place) == 20


async def the_group_goes_on_once_a_dead_member_is_removed(kafka: Kafka) -> None:
    """By its client id, long before its session ends."""
    topic = make_topic(kafka, partitions=4)
    publish(kafka, numbered(topic, range(40)))
    async with group_member(kafka, [topic], "contract-lives") as lives:
        with _killed_at_the_end(kafka, topic, session_ms=300_000):
            await _has(lives, 2)
        assert _client_ids(kafka) == {SILENT, "contract-lives"}
        assert remove_dead_members(kafka.bootstrap, group_name(kafka), SILENT.__eq__) == 1
        await _has(lives, 4)
        read = {int(record.value) for record in await take(lives, 40)}
        assert read == set(range(40))


async def a_member_that_falls_silent_is_evicted_when_its_session_ends(kafka: Kafka) -> None:
    topic = make_topic(kafka, partitions=4)
    session = {"session_timeout_ms": SHORTEST_SESSION_MS}
    async with group_member(kafka, [topic], "contract-lives", **session) as lives:
        with _killed_at_the_end(kafka, topic, session_ms=SHORTEST_SESSION_MS):
            await _has(lives, 2)
        await _has(lives, 4, seconds=SHORTEST_SESSION_MS / 1000 + TAKE_OVER_SECONDS)


async def _has(
    member: AIOKafkaConsumer, partitions: int, seconds: float = REBALANCE_SECONDS
) -> None:
    await until_async(
        f"{partitions} partitions",
        lambda: len(member.assignment()) == partitions,
        seconds,
        state=member.assignment,
    )


def _client_ids(kafka: Kafka) -> set[str]:
    group = group_name(kafka)
    with admin_client(kafka) as admin:
        members = admin.describe_groups([group])[group]["members"]
    return {member["client_id"] for member in members}


@contextmanager
def _killed_at_the_end(kafka: Kafka, topic: Topic, session_ms: int) -> Iterator[None]:
    """Run a member in a process of its own and end that as a crash does."""
    command = [sys.executable, "-m", "tests.broker_contract.member"]
    options = [kafka.bootstrap, topic.full_name(kafka.prefix), group_name(kafka), SILENT]
    process = subprocess.Popen([*command, *options, str(session_ms)])
    try:
        yield
    finally:
        process.kill()
        process.wait(10)
