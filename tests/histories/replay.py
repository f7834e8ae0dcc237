"""The raw log once more, before a fresh worker: empty store, new group, topics of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from kafka import KafkaAdminClient
from msgspec.structs import replace

from contracts.broker import create_topics, make_producer, read_to_end, send_again
from contracts.settings import Kafka, Settings
from contracts.topics import DECISIONS, FEEDBACK, TOPICS
from tests.histories.workers import Workers


class Replay:
    """One worker that knows nothing and waits for a log; use as a context manager.

    It starts at once, since that takes as long as sending a history.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._source = settings.kafka
        kafka = replace(settings.kafka, prefix=f"{settings.kafka.prefix}again-{folder.name}-")
        self.settings = replace(settings, kafka=kafka, state_dir=folder / "state")
        self._workers = Workers(self.settings, folder / "logs")

    def __enter__(self) -> Replay:
        create_topics(self.settings.kafka)
        self._workers.join()
        return self

    def run(self, waiting: dict[str, int]) -> None:
        """Give the raw log to the worker and wait until it is worked off."""
        self._mirror()
        self._workers.until("the replay at rest", lambda: self._workers.at_rest(waiting))

    def __exit__(self, *exc_info: object) -> None:
        self._workers.close()
        _delete_topics(self.settings.kafka)
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)

    def _mirror(self) -> None:
        """Write every record of decisions and feedback to its own partition again, in order."""
        producer = make_producer(self.settings.kafka, "test-mirror")
        for record in read_to_end(self._source, (DECISIONS, FEEDBACK), "test-mirror-reader"):
            assert send_again(producer, self.settings.kafka, record) == record.offset
        producer.close()


def _delete_topics(kafka: Kafka) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="test-delete")
    try:
        admin.delete_topics([topic.full_name(kafka.prefix) for topic in TOPICS])
    finally:
        admin.close()
