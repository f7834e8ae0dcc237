"""Following the state: from the topic, from the cache, through a restart of the broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from console.local_broker import LocalBroker, free_port
from contracts.broker import create_topics, make_producer, send
from contracts.clock import ManualClock
from contracts.codec import Record, encode
from contracts.events import Candidate, Rollout
from contracts.settings import Kafka
from contracts.topics import ROLLOUTS
from serving.assignment import assign
from serving.rollout_lease import Lease
from serving.rollout_state import RolloutFollower, newer, read_cache, write_cache
from tests.topic_log import publish, write
from tests.until import until


def state(epoch: int, stable: str = "base", *, policy: str = "desk", ident: str = "x") -> Rollout:
    return Rollout(
        id=ident,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        policy=policy,
        epoch=epoch,
        phase="idle",
        stable=Candidate(version=stable),
    )


@contextmanager
def following(kafka: Kafka, cache: Path, lease: Lease | None = None) -> Iterator[RolloutFollower]:
    follower = RolloutFollower(
        kafka, "desk", "test-follower", cache, lease or Lease(ManualClock(), 600.0)
    ).start()
    try:
        yield follower
    finally:
        follower.stop()


def epoch_of(follower: RolloutFollower) -> int | None:
    return follower.current.epoch if follower.current else None


def test_the_higher_epoch_holds_and_among_equals_the_later() -> None:
    assert newer(None, state(0)).epoch == 0
    assert newer(state(3), state(2)).epoch == 3
    assert newer(state(3, ident="a"), state(3, ident="b")).id == "b"


def test_without_any_state_there_is_none(kafka: Kafka, tmp_path: Path) -> None:
    with following(kafka, tmp_path / "cache.json") as follower:
        assert follower.current is None


def test_the_newest_state_of_the_own_policy_is_followed(kafka: Kafka, tmp_path: Path) -> None:
    publish(kafka, ROLLOUTS, state(1, "old"), state(7, "theirs", policy="other"))
    with following(kafka, tmp_path / "cache.json") as follower:
        until("epoch 1", lambda: epoch_of(follower) == 1)
        publish(kafka, ROLLOUTS, state(2, "new"), state(1, "late"))
        until("epoch 2", lambda: epoch_of(follower) == 2)
        assert follower.current is not None
        assert follower.current.stable.version == "new"


def test_what_is_no_state_is_passed_over(kafka: Kafka, tmp_path: Path) -> None:
    write(kafka, Record(ROLLOUTS, b"desk", b"{nonsense", []))
    publish(kafka, ROLLOUTS, state(1))
    with following(kafka, tmp_path / "cache.json") as follower:
        until("epoch 1", lambda: epoch_of(follower) == 1)


class FaultyLease(Lease):
    """A lease with a fault that shows at its first word of the controller."""

    faults = 0

    def heard(self) -> None:
        self.faults += 1
        if self.faults == 1:
            raise TypeError("a fault of ours")
        super().heard()


def test_a_fault_does_not_end_the_following(kafka: Kafka, tmp_path: Path) -> None:
    publish(kafka, ROLLOUTS, state(1))
    lease = FaultyLease(ManualClock(), 600.0)
    with following(kafka, tmp_path / "cache.json", lease) as follower:
        until("epoch 1", lambda: epoch_of(follower) == 1)
    assert lease.faults > 1


def test_with_the_broker_down_the_last_good_state_serves(kafka: Kafka, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    publish(kafka, ROLLOUTS, state(4, "good"))
    with following(kafka, cache) as follower:
        until("epoch 4", lambda: epoch_of(follower) == 4)
        until("the cache", cache.exists)
    nowhere = Kafka(bootstrap=f"127.0.0.1:{free_port()}")
    follower = RolloutFollower(
        nowhere, "desk", "test-follower", cache, Lease(ManualClock(), 600.0)
    ).start()
    assert follower.current is not None  # at once, before any connection
    assert follower.current.stable.version == "good"
    follower.stop()


def test_a_cache_of_an_earlier_broker_gives_way_to_the_topic(kafka: Kafka, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    write_cache(cache, state(99, "forgotten"))
    publish(kafka, ROLLOUTS, state(1, "present"))
    with following(kafka, cache) as follower:
        assert epoch_of(follower) == 99
        until("epoch 1", lambda: epoch_of(follower) == 1)


def test_while_history_is_read_no_request_sees_an_older_state(kafka: Kafka, tmp_path: Path) -> None:
    cache, last = tmp_path / "cache.json", 3000
    write_cache(cache, state(last, ident="cached"))
    producer = make_producer(kafka, "test")
    for epoch in range(1, last + 1):
        send(producer, kafka, encode(ROLLOUTS, state(epoch), source="test"))
    producer.flush(20)
    producer.close()
    with following(kafka, cache) as follower:
        seen = set()

        def shown() -> bool:
            now = follower.current
            seen.add(now.epoch if now else None)
            return now is not None and now.id != "cached"

        until("the topic's own state", shown)
    assert seen == {last}


def test_a_broken_or_foreign_cache_is_no_state(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache.json"
    assert read_cache(cache, "desk") is None
    write_cache(cache, state(1))
    assert read_cache(cache, "desk") == state(1)
    assert read_cache(cache, "other") is None
    cache.write_bytes(cache.read_bytes()[:-20])
    assert read_cache(cache, "desk") is None
    assert [path.name for path in cache.parent.iterdir()] == ["cache.json"]


def test_a_broker_that_starts_late_and_restarts_is_followed(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker")
    with following(broker.kafka, tmp_path / "cache.json") as follower:
        with broker:
            create_topics(broker.kafka)
            publish(broker.kafka, ROLLOUTS, state(1))
            until("epoch 1", lambda: epoch_of(follower) == 1)
        assert epoch_of(follower) == 1
        with broker:
            publish(broker.kafka, ROLLOUTS, state(2))
            until("epoch 2", lambda: epoch_of(follower) == 2)


def test_a_canary_that_nobody_judges_any_more_is_withdrawn_until_the_controller_is_back(
    kafka: Kafka, tmp_path: Path
) -> None:
    clock = ManualClock()
    out = replace(
        state(1),
        phase="canary",
        candidate=Candidate(version="new"),
        rollout_id="r",
        salt="s",
        weight=0.5,
        term=2,
        writer="one",
    )
    publish(kafka, ROLLOUTS, out)
    with following(kafka, tmp_path / "cache.json", Lease(clock, 60.0)) as follower:
        until("the canary", lambda: follower.current == out)
        clock.advance(60.0)
        assert follower.current == out
        clock.advance(1.0)
        assert "canary new of desk is withdrawn" in follower.note
        given = [assign(follower.current, "desk", str(user)) for user in range(100)]
        assert {(one.policy_version, one.rollout_id) for one in given} == {("base", None)}
        zombie = replace(out, term=1, writer="zombie", epoch=9)
        publish(kafka, ROLLOUTS, zombie, replace(out, epoch=2))
        until("the canary again", lambda: epoch_of(follower) == 2 and not follower.note)
        assert follower.current is not None
        assert follower.current.weight == 0.5


def test_a_stable_version_needs_no_lease() -> None:
    clock = ManualClock()
    lease = Lease(clock, 60.0)
    clock.advance(10**6)
    assert not lease.over(state(1))
    assert not lease.over(None)
