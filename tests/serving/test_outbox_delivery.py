"""The outbox on its way to a real broker that refuses some records."""

from __future__ import annotations

from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from contracts.clock import ManualClock
from contracts.codec import Record, encode
from contracts.events import AuditRecord
from contracts.settings import Kafka
from contracts.topics import AUDIT
from serving.outbox import Outbox
from serving.outbox_delivery import Delivery
from tests import topic_log
from tests.until import until

LIMIT = 20_000


def limit_records(kafka: Kafka) -> None:
    """Have the broker refuse what is larger, far below what the client would."""
    name = AUDIT.full_name(kafka.prefix)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        limit = {"max.message.bytes": str(LIMIT)}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, limit)])
    finally:
        admin.close()


def test_a_record_that_the_broker_refuses_costs_only_itself_and_a_batch_that_it_refuses_nothing(
    kafka: Kafka, tmp_path: Path, clock: ManualClock
) -> None:
    limit_records(kafka)
    outbox = Outbox(tmp_path, 1 << 20)

    def record(name: str, size: int = 0) -> Record:
        event = AuditRecord(
            id=name,
            time=clock.now(),
            producer="test",
            sequence=0,
            previous="",
            action="test",
            subject=name,
            detail={"text": "x" * size},
        )
        return encode(AUDIT, event, source="test")

    delivery = Delivery(outbox, kafka, "test-outbox")
    outbox.append([record("a"), record("large", 2 * LIMIT), record("b")])
    outbox.append([record("larger", 3 * LIMIT)])
    delivery.start()
    try:
        until("the first delivery", lambda: not outbox.undelivered)
        outbox.append([record(f"later-{number}", 500) for number in range(100)])
        until("the second delivery", lambda: not outbox.undelivered)
    finally:
        delivery.stop(5.0)
    names = [event.id for event in topic_log.events(kafka, AUDIT, AuditRecord)]
    assert names == ["a", "b", *(f"later-{number}" for number in range(100))]
    assert delivery.refused == 2
