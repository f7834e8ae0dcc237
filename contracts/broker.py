"""The Kafka clients of every process but the Faust worker: producers, consumers, topic admin.

Consumers here are assigned partitions and seek by themselves; only the Faust worker joins a group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from msgspec import Struct

from contracts.codec import Headers, Record, decode
from contracts.errors import (
    CodecError,
    DeadlineError,
    TopicMissingError,
    UnavailableError,
)
from contracts.events import Event
from contracts.header_names import read_any_header_name
from contracts.settings import Kafka
from contracts.topics import TOPICS, Topic

CONNECT_SECONDS = 10.0
_PAUSE_SECONDS = 0.02  # a broker that answers empty fetches at once would keep a core busy
_BATCH_BYTES = 256 << 10  # a batch wakes two threads, and the default holds five decisions
_LOG_APPEND_TIME = 1
_NOT_KNOWN_YET = 0  # partitions of a topic that is just being made
_PATIENCE: dict[str, int] = {
    "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
    "reconnect_backoff_max_ms": 1000,  # a broker that comes back is found within a second
}

read_any_header_name()


class Received(Struct, frozen=True):
    """A record as read, not yet decoded; ``appended`` is when the broker got it, None where its
    timestamp is its writer's."""

    topic: Topic
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    appended: datetime | None = None

    def event(self) -> Event:
        """Decode the value; CodecError says why it cannot be."""
        return decode(self.topic, self.value, self.headers)


def make_producer(kafka: Kafka, client_id: str) -> KafkaProducer:
    """Return an idempotent producer that waits for all replicas (acks=all)."""
    return KafkaProducer(
        bootstrap_servers=kafka.bootstrap,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        batch_size=_BATCH_BYTES,
        max_block_ms=int(CONNECT_SECONDS * 1000),
        **_PATIENCE,
    )


def send(producer: KafkaProducer, kafka: Kafka, record: Record) -> Any:
    """Queue a record and return the client's future of its delivery."""
    return producer.send(
        record.topic.full_name(kafka.prefix),
        value=record.value,
        key=record.key,
        headers=record.headers,
    )


def send_and_wait(
    producer: KafkaProducer, kafka: Kafka, record: Record, seconds: float = 30.0
) -> int:
    """Send one record, wait until the broker has it and return its offset.

    DeadlineError when the broker does not acknowledge it.
    """
    try:
        return int(send(producer, kafka, record).get(timeout=seconds).offset)
    except KafkaError as error:
        raise DeadlineError(
            f"{record.topic.name}: not acknowledged by {kafka.bootstrap} within {seconds} s "
            f"({error}); is the broker up?"
        ) from error


def send_again(
    producer: KafkaProducer, kafka: Kafka, record: Received, seconds: float = 30.0
) -> int:
    """Send a record that was read to its own partition again and return its new offset.

    The client can send neither headers without a value, which are left out, nor a record with
    neither key nor value, which gets an empty value. KafkaError when the broker does not take it.
    """
    empty = record.key is None and record.value is None
    sent = producer.send(
        record.topic.full_name(kafka.prefix),
        value=b"" if empty else record.value,
        key=record.key,
        headers=[(name, raw) for name, raw in record.headers if raw is not None],
        partition=record.partition,
    )
    return int(sent.get(timeout=seconds).offset)


class Reader:
    """Reads all partitions of some topics from given offsets, without a consumer group.

    ``positions`` maps ``"topic/partition"`` (without prefix) to the next offset; what is missing
    starts at the beginning, or at the end with ``from_end``. ``pause_seconds`` lie between two
    fetches while nothing comes.

    A position before the log's beginning begins there. One that the log does not hold later, as
    when it was cut short or made anew, begins at its beginning, too: right for those who know again
    what they have read. For others ``begin_again`` is False, and `poll` raises
    OffsetOutOfRangeError, a KafkaError.

    UnavailableError for a topic with other partitions than its row of the table names, and that is
    TopicMissingError where there is none.
    """

    def __init__(
        self,
        kafka: Kafka,
        topics: tuple[Topic, ...],
        client_id: str,
        positions: Mapping[str, int] | None = None,
        *,
        from_end: bool = False,
        pause_seconds: float = _PAUSE_SECONDS,
        begin_again: bool = True,
    ) -> None:
        self._pause = pause_seconds
        self._topics = {topic.full_name(kafka.prefix): topic for topic in topics}
        self._consumer = KafkaConsumer(
            bootstrap_servers=kafka.bootstrap,
            client_id=client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if begin_again else "none",
            max_poll_records=1000,
            **_PATIENCE,
        )
        try:
            self._assign(positions or {}, from_end)
        except BaseException:
            self._consumer.close()
            raise

    def _assign(self, positions: Mapping[str, int], from_end: bool) -> None:
        partitions = []
        for full_name in self._topics:
            found = self._consumer.partitions_for_topic(full_name)
            if not found:
                raise TopicMissingError(
                    f"topic {full_name} is missing; run 'headrace topics create'"
                )
            _check_partitions(self._topics[full_name], full_name, len(found))
            partitions += [TopicPartition(full_name, number) for number in sorted(found)]
        self._consumer.assign(partitions)
        beginnings = self._consumer.beginning_offsets(partitions)
        ends = self._consumer.end_offsets(partitions) if from_end else {}
        for place in partitions:
            default = ends[place] if from_end else beginnings[place]
            name = f"{self._topics[place.topic].name}/{place.partition}"
            self._consumer.seek(place, max(positions.get(name, default), beginnings[place]))

    def poll(self, seconds: float) -> list[Received]:
        """Return the records that arrive within ``seconds``, in offset order per partition."""
        deadline = time.monotonic() + seconds
        batches = self._consumer.poll(timeout_ms=0)
        while not batches and time.monotonic() < deadline:
            time.sleep(self._pause)
            batches = self._consumer.poll(timeout_ms=0)
        return [
            _received(self._topics[record.topic], record)
            for batch in batches.values()
            for record in batch
        ]

    def rewind(self, record: Received) -> None:
        """Read its partition again from this record on."""
        name = next(full for full, topic in self._topics.items() if topic == record.topic)
        self._consumer.seek(TopicPartition(name, record.partition), record.offset)

    def positions(self) -> dict[str, int]:
        """Return the next offset of every partition."""
        return {
            f"{self._topics[place.topic].name}/{place.partition}": self._consumer.position(place)
            for place in self._consumer.assignment()
        }

    def ends(self) -> dict[str, int]:
        """Return the offset after the last record of every partition."""
        places = list(self._consumer.assignment())
        return {
            f"{self._topics[place.topic].name}/{place.partition}": end
            for place, end in self._consumer.end_offsets(places).items()
        }

    def lag(self) -> int | None:
        """Return how many records were yet to be read at the last fetch, None before the first.

        It asks the broker nothing, so it never blocks; with the broker away it stands still.
        """
        total = 0
        for place in self._consumer.assignment():
            end = self._consumer.highwater(place)
            if end is None:
                return None
            total += max(end - self._consumer.position(place), 0)
        return total

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


class Lookup:
    """Fetches single records by their place, where a `Reader` follows a log."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka = kafka
        self._consumer = KafkaConsumer(
            bootstrap_servers=kafka.bootstrap,
            client_id=client_id,
            group_id=None,
            enable_auto_commit=False,
            **_PATIENCE,
        )

    def record(
        self, topic: Topic, partition: int, offset: int, seconds: float = 10.0
    ) -> Received | None:
        """Return the record at an offset, None when it is not there, or no longer.

        DeadlineError when the broker does not give it within ``seconds``.
        """
        name = topic.full_name(self._kafka.prefix)
        place = TopicPartition(name, partition)
        if partition not in (self._consumer.partitions_for_topic(name) or ()):
            return None
        begin = self._consumer.beginning_offsets([place])[place]
        if not begin <= offset < self._consumer.end_offsets([place])[place]:
            return None
        self._consumer.assign([place])
        self._consumer.seek(place, offset)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for found in self._consumer.poll(timeout_ms=200, max_records=1).get(place, ()):
                return _received(topic, found) if found.offset == offset else None
        raise DeadlineError(
            f"{name}/{partition}: offset {offset} did not come within {seconds} s; "
            "look at the broker with 'headrace doctor'"
        )

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def _check_partitions(topic: Topic, full_name: str, found: int) -> None:
    """Raise UnavailableError for a topic that has lost its one order to several partitions."""
    if topic.partitions is not None and found not in (topic.partitions, _NOT_KNOWN_YET):
        raise UnavailableError(
            f"topic {full_name} has {found} partitions and must have {topic.partitions}, for what "
            "is in it has one order; stop what writes to it, delete it and run "
            "'headrace topics create', or name another kafka.prefix"
        )


def _received(topic: Topic, record: Any) -> Received:
    return Received(
        topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        list(record.headers or ()),
        _moment(record.timestamp) if record.timestamp_type == _LOG_APPEND_TIME else None,
    )


def _moment(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def read_to_end(
    kafka: Kafka, topics: tuple[Topic, ...], client_id: str, seconds: float = 30.0
) -> Iterator[Received]:
    """Yield every record that is in the topics now, then stop; DeadlineError after ``seconds``
    of waiting for one."""
    reader = Reader(kafka, topics, client_id)
    try:
        ends = reader.ends()
        deadline = time.monotonic() + seconds
        while any(at < ends[place] for place, at in reader.positions().items()):
            records = reader.poll(0.2)
            if not records and time.monotonic() > deadline:
                names = ", ".join(topic.name for topic in topics)
                raise DeadlineError(f"reading {names} to the end: nothing came for {seconds} s")
            if records:
                yield from (record for record in records if _before(record, ends))
                deadline = time.monotonic() + seconds  # without the time that the caller took
    finally:
        reader.close()


def events_to_end(
    kafka: Kafka, topics: tuple[Topic, ...], client_id: str, seconds: float = 30.0
) -> Iterator[tuple[Received, Event]]:
    """Yield (record, event) for every valid record in the topics now; invalid ones are skipped."""
    for record in read_to_end(kafka, topics, client_id, seconds):
        try:
            yield record, record.event()
        except CodecError:
            continue


def _before(record: Received, ends: Mapping[str, int]) -> bool:
    return record.offset < ends[f"{record.topic.name}/{record.partition}"]


def create_topics(kafka: Kafka, topics: Sequence[Topic] = TOPICS) -> list[str]:
    """Create those of the topics that are missing and return their names.

    UnavailableError when one that is there has other partitions than its row of the table names.
    """
    admin = KafkaAdminClient(
        bootstrap_servers=kafka.bootstrap, client_id="headrace-topics", **_PATIENCE
    )
    try:
        existing = set(admin.list_topics())
        _check_existing(admin, {topic.full_name(kafka.prefix): topic for topic in topics}, existing)
        missing = [t for t in topics if t.full_name(kafka.prefix) not in existing]
        for topic in missing:
            new = NewTopic(
                name=topic.full_name(kafka.prefix),
                num_partitions=topic.partitions or kafka.partitions,
                replication_factor=kafka.replication,
                topic_configs=_configs(topic),
            )
            try:
                admin.create_topics([new])
            except TopicAlreadyExistsError:
                continue
        return [topic.full_name(kafka.prefix) for topic in missing]
    finally:
        admin.close()


def _check_existing(admin: Any, topics: Mapping[str, Topic], existing: set[str]) -> None:
    ordered = [name for name, topic in topics.items() if topic.partitions and name in existing]
    for described in admin.describe_topics(ordered) if ordered else ():
        name = described["name"]
        _check_partitions(topics[name], name, len(described["partitions"]))


def _configs(topic: Topic) -> dict[str, str]:
    for_ever = {"retention.ms": "-1", "retention.bytes": "-1"} if topic.kept_for_ever else {}
    stamped = {"message.timestamp.type": "LogAppendTime"} if topic.append_time else {}
    return {"cleanup.policy": topic.cleanup, **for_ever, **stamped}


def wait_for_broker(
    kafka: Kafka, seconds: float, still_alive: Callable[[], bool] = lambda: True
) -> None:
    """Wait until the broker answers a metadata request; DeadlineError names the address.

    It is asked at least once, for at least half a second.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _probe(kafka, max(0.5, min(2.0, seconds)))
        except KafkaError as error:
            if time.monotonic() > deadline or not still_alive():
                raise DeadlineError(
                    f"broker {kafka.bootstrap} did not answer within {seconds} s ({error}); "
                    "check the address with 'headrace doctor'"
                ) from error
            time.sleep(0.05)
        else:
            return


def _probe(kafka: Kafka, seconds: float) -> None:
    admin = KafkaAdminClient(
        bootstrap_servers=kafka.bootstrap,
        client_id="headrace-probe",
        request_timeout_ms=2000,
        bootstrap_timeout_ms=int(seconds * 1000),
    )
    try:
        admin.list_topics()
    finally:
        admin.close()
