"""The Kafka clients against the real development broker; what the broker itself must keep is in
tests/broker_contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import OffsetOutOfRangeError

from console.local_broker import LocalBroker, free_port
from contracts.broker import (
    Lookup,
    Reader,
    Received,
    create_topics,
    make_producer,
    read_to_end,
    send_again,
    send_and_wait,
    wait_for_broker,
)
from contracts.codec import Record, encode
from contracts.errors import DeadlineError, UnavailableError
from contracts.events import Feedback
from contracts.settings import Kafka
from contracts.topics import FEEDBACK, SAMPLES
from tests import topic_log
from tests.poison import RawName
from tests.stream_events import NOON
from tests.until import until


def rating(number: int, session: str = "s1") -> Feedback:
    return Feedback(
        id=f"f{number}",
        time=NOON,
        decision_id="d1",
        session_id=session,
        user_id="u1",
        kind="rating",
        score=1.0,
    )


def write(kafka: Kafka, numbers: range) -> None:
    topic_log.publish(kafka, FEEDBACK, *(rating(n, f"s{n % 7}") for n in numbers))


def ids_at_the_end(kafka: Kafka) -> list[str]:
    return sorted(event.id for event in topic_log.events(kafka, FEEDBACK, Feedback))


@pytest.fixture
def reader(kafka: Kafka) -> Iterator[Reader]:
    opened = Reader(kafka, (FEEDBACK,), "test-reader")
    yield opened
    opened.close()


def read(reader: Reader, wanted: int) -> list[Received]:
    found: list[Received] = []

    def enough() -> bool:
        found.extend(reader.poll(0.2))
        return len(found) >= wanted

    until(f"{wanted} records", enough, state=lambda: found)
    return found


def read_ids(reader: Reader, wanted: int) -> list[str]:
    return [record.event().id for record in read(reader, wanted)]


def test_making_topics_again_makes_none(kafka: Kafka) -> None:
    assert create_topics(kafka) == []


def test_reader_that_resumes_from_its_positions_sees_each_record_once(
    kafka: Kafka, reader: Reader
) -> None:
    write(kafka, range(20))
    first = read_ids(reader, 20)
    positions = reader.positions()
    write(kafka, range(20, 30))
    resumed = Reader(kafka, (FEEDBACK,), "test-reader", positions)
    second = read_ids(resumed, 10)
    resumed.close()
    assert sorted(first) == sorted(f"f{n}" for n in range(20))
    assert sorted(second) == [f"f{n}" for n in range(20, 30)]


def test_positions_and_ends_agree_when_all_is_read(kafka: Kafka, reader: Reader) -> None:
    write(kafka, range(10))
    assert len(read_ids(reader, 10)) == 10
    assert reader.positions() == reader.ends()
    assert sum(reader.ends().values()) == 10
    assert set(reader.ends()) == {f"feedback/{number}" for number in range(kafka.partitions)}


def test_reader_from_the_end_sees_only_what_comes_after(kafka: Kafka) -> None:
    write(kafka, range(5))
    late = Reader(kafka, (FEEDBACK,), "test-reader", from_end=True)
    write(kafka, range(5, 8))
    assert sorted(read_ids(late, 3)) == ["f5", "f6", "f7"]
    late.close()


@pytest.mark.parametrize("begin_again", [True, False])
def test_a_position_behind_the_end_begins_again_or_is_refused(
    kafka: Kafka, begin_again: bool
) -> None:
    topic_log.publish(kafka, FEEDBACK, rating(0))
    ends = {f"feedback/{number}": 25 for number in range(kafka.partitions)}
    opened = Reader(kafka, (FEEDBACK,), "test-reader", ends, begin_again=begin_again)
    try:
        if begin_again:
            assert read_ids(opened, 1) == ["f0"]
        else:
            with pytest.raises(OffsetOutOfRangeError):
                read(opened, 1)
    finally:
        opened.close()


def test_reading_to_the_end_stops_there(kafka: Kafka) -> None:
    assert list(read_to_end(kafka, (FEEDBACK, SAMPLES), "test-reader")) == []
    write(kafka, range(25))
    assert len(list(read_to_end(kafka, (FEEDBACK, SAMPLES), "test-reader"))) == 25


def test_records_that_are_no_events_are_skipped_by_those_who_want_events(kafka: Kafka) -> None:
    write(kafka, range(2))
    topic_log.write(kafka, Record(FEEDBACK, b"s1", b"not json", []))
    assert ids_at_the_end(kafka) == ["f0", "f1"]
    assert len(list(read_to_end(kafka, (FEEDBACK,), "test-reader"))) == 3


def test_missing_topic_is_named_with_the_cure(broker: LocalBroker) -> None:
    nowhere = Kafka(bootstrap=broker.kafka.bootstrap, prefix="nowhere.")
    with pytest.raises(UnavailableError, match=r"nowhere\.feedback.*headrace topics create"):
        Reader(nowhere, (FEEDBACK,), "test-reader")


def test_wait_for_a_broker_that_is_away_ends_at_its_deadline() -> None:
    away = Kafka(bootstrap=f"127.0.0.1:{free_port()}")
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.5 s.*headrace doctor"):
        wait_for_broker(away, 0.5)


def test_wait_without_patience_finds_a_broker_that_is_there(broker: LocalBroker) -> None:
    wait_for_broker(broker.kafka, 0.0)


def test_wait_gives_up_at_once_when_the_process_is_gone() -> None:
    away = Kafka(bootstrap=f"127.0.0.1:{free_port()}")
    with pytest.raises(DeadlineError):
        wait_for_broker(away, 3600, still_alive=lambda: False)


def test_clients_go_on_when_the_broker_comes_back(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        kafka = broker.kafka
        create_topics(kafka)
        producer = make_producer(kafka, "test-writer")
        reader = Reader(kafka, (FEEDBACK,), "test-reader")
        send_and_wait(producer, kafka, encode(FEEDBACK, rating(0), source="tests"))
        assert read_ids(reader, 1) == ["f0"]
        broker.stop()
        assert reader.poll(0.2) == []
        broker.start()
        send_and_wait(producer, kafka, encode(FEEDBACK, rating(1), source="tests"))
        assert read_ids(reader, 1) == ["f1"]
        assert ids_at_the_end(kafka) == ["f0", "f1"]
        reader.close()
        producer.close()


def test_undelivered_record_is_reported_and_still_delivered_later(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        create_topics(broker.kafka)
        producer = make_producer(broker.kafka, "test-writer")
        broker.stop()
        with pytest.raises(DeadlineError, match="not acknowledged by 127"):
            send_and_wait(producer, broker.kafka, encode(FEEDBACK, rating(0), source="tests"), 0.5)
        broker.start()
        producer.close()
        assert ids_at_the_end(broker.kafka) == ["f0"]


def test_a_record_is_found_by_its_place_and_nothing_where_there_is_none(kafka: Kafka) -> None:
    write(kafka, range(20))
    lookup = Lookup(kafka, "test-lookup")
    records = list(read_to_end(kafka, (FEEDBACK,), "test-reader"))
    for record in reversed(records):
        assert lookup.record(FEEDBACK, record.partition, record.offset) == record
    end = sum(record.partition == records[0].partition for record in records)
    for partition, offset in ((records[0].partition, end), (0, -1), (kafka.partitions, 0)):
        assert lookup.record(FEEDBACK, partition, offset) is None
    lookup.close()


@pytest.mark.parametrize(
    ("key", "value", "sent"), [(b"k", b"v", b"v"), (None, b"v", b"v"), (None, None, b"")]
)
def test_a_record_is_sent_again_to_its_own_partition(
    kafka: Kafka, key: bytes | None, value: bytes | None, sent: bytes
) -> None:
    producer = make_producer(kafka, "test-writer")
    headers: list[tuple[str, Any]] = [("a", b"1"), ("a", b"2"), ("none", None)]
    for partition in range(kafka.partitions):
        send_again(producer, kafka, Received(FEEDBACK, partition, 7, key, value, headers))
    producer.close()
    found = list(read_to_end(kafka, (FEEDBACK,), "test-reader"))
    assert sorted(record.partition for record in found) == list(range(kafka.partitions))
    assert {(record.offset, record.key, record.value) for record in found} == {(0, key, sent)}
    assert all(record.headers == [("a", b"1"), ("a", b"2")] for record in found)


def test_a_header_name_that_is_no_utf8_stops_no_reader(kafka: Kafka) -> None:
    """Clients in other languages can send any bytes."""
    producer = make_producer(kafka, "test-writer")
    name = FEEDBACK.full_name(kafka.prefix)
    sent = []
    for number in range(30):  # many in one batch
        headers = [("good", b"1"), (RawName(b"odd\xff"), b"2")] if number % 3 == 1 else []
        value = f"{number} é".encode()
        sent.append(producer.send(name, value=value, headers=headers, partition=0))
    producer.flush(30)
    producer.close()
    found = list(read_to_end(kafka, (FEEDBACK,), "test-reader"))
    assert [record.value for record in found] == [f"{n} é".encode() for n in range(30)]
    assert [record.offset for record in found] == [one.get(0).offset for one in sent]
    assert found[0].headers == []
    assert found[1].headers == [("good", b"1"), ("odd\\xff", b"2")]
