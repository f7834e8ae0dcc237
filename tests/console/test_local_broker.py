from __future__ import annotations

import threading
from pathlib import Path

from console.local_broker import LocalBroker, remove_dead_members
from contracts.broker import create_topics, make_producer
from contracts.settings import Kafka


def produce_until(
    kafka: Kafka, stop: threading.Event, acknowledged: set[str], first: threading.Event
) -> None:
    producer = make_producer(kafka, "test-flood")
    number = 0

    def note(name: str) -> None:
        acknowledged.add(name)
        first.set()

    while not stop.wait(0.0005):
        name = str(number)
        number += 1
        future = producer.send("feedback", key=name.encode(), value=name.encode() + b" " * 800)
        future.add_callback(lambda _meta, name=name: note(name))
    producer.close(timeout=0)


def stored(kafka: Kafka) -> set[str]:
    from contracts.broker import read_to_end
    from contracts.topics import FEEDBACK

    return {(record.key or b"").decode() for record in read_to_end(kafka, (FEEDBACK,), "test")}


def test_a_broker_stopped_under_a_flood_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker").start()
    create_topics(broker.kafka)
    stop, first, acknowledged = threading.Event(), threading.Event(), set[str]()
    writer = threading.Thread(target=produce_until, args=(broker.kafka, stop, acknowledged, first))
    writer.start()
    try:
        assert first.wait(20)
        broker.stop()
    finally:
        stop.set()
        writer.join()
    with LocalBroker(tmp_path / "broker", broker.port) as again:
        lost = acknowledged - stored(again.kafka)
    # One stop in about 25 under 1000 records a second loses a few that were under way; SIGTERM
    # alone lost 120 to 220 of 9000 in every one of 8 stops.
    assert acknowledged
    assert len(lost) <= 0.01 * len(acknowledged) + 5


def test_a_group_that_nobody_joined_has_no_dead_members(kafka: Kafka) -> None:
    group = f"{kafka.prefix}nobody"
    assert remove_dead_members(kafka.bootstrap, group, lambda _client: True) == 0
