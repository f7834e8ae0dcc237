"""Writing records to a topic and reading all of its events."""

from __future__ import annotations

from typing import TypeVar

from contracts.broker import events_to_end, make_producer, send_and_wait
from contracts.codec import Record, encode
from contracts.events import Event
from contracts.settings import Kafka
from contracts.topics import Topic

E = TypeVar("E", bound=Event)


def events(kafka: Kafka, topic: Topic, kind: type[E]) -> list[E]:
    """Return the events of one kind that are in a topic now."""
    found = events_to_end(kafka, (topic,), "test-reader")
    return [event for _, event in found if isinstance(event, kind)]


def write(kafka: Kafka, *records: Record) -> None:
    """Write records one after the other and wait until the broker has them."""
    producer = make_producer(kafka, "test-writer")
    for record in records:
        send_and_wait(producer, kafka, record)
    producer.close()


def publish(kafka: Kafka, topic: Topic, *events: Event) -> None:
    """Write events one after the other."""
    write(kafka, *(encode(topic, event, source="test") for event in events))
