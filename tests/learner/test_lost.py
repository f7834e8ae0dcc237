"""A learner that was away for longer than the broker keeps samples says which it may lack."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

from kafka import TopicPartition
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.events import AuditRecord
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from contracts.topics import AUDIT, SAMPLES
from learner.loop import run
from tests.broker_contract.clients import admin_client
from tests.learner.reading import no_means
from tests.topic_log import events
from tests.until import until

SendSamples = Callable[[Kafka, int, int], None]


def _learn_to(batches: int, settings: Settings, clock: ManualClock, new_id: NewId) -> None:
    """Let a learner come that far."""
    stop = Event()
    named = {"process": "learner"}
    thread = Thread(target=run, args=(settings, clock, new_id, stop, no_means), kwargs=named)
    thread.start()
    try:
        until("the batches", lambda: len(_trail(settings.kafka, "batch.learned")) >= batches, 120.0)
    finally:
        stop.set()
        thread.join(60)


def _trail(kafka: Kafka, action: str) -> list[AuditRecord]:
    return [record for record in events(kafka, AUDIT, AuditRecord) if record.action == action]


def test_offsets_that_retention_removed_before_a_commit_are_named_in_the_audit(
    settings: Settings, kafka: Kafka, clock: ManualClock, new_id: NewId, send_samples: SendSamples
) -> None:
    settings = replace(settings, kafka=kafka)
    send_samples(kafka, 0, 8)
    place = TopicPartition(SAMPLES.full_name(kafka.prefix), 0)
    with admin_client(kafka) as admin:
        admin.delete_records({place: 0})
        _learn_to(1, settings, clock, new_id)
        assert _trail(kafka, "samples.lost") == []
        send_samples(kafka, 8, 32)
        admin.delete_records({place: 20})
        _learn_to(2, settings, clock, new_id)
    (lost,) = _trail(kafka, "samples.lost")
    assert lost.detail == {"first_offset": 8, "next_offset": 20, "samples": "not known"}
    assert "may have held samples of assistant" in lost.reason
    assert "retention.ms for samples" in lost.reason
