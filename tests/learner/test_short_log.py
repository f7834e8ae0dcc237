"""A log that lacks what the learner needs to go on stops it, and is not read as if it were new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from kafka import TopicPartition
from msgspec.structs import replace

from contracts.broker import create_topics
from contracts.clock import ManualClock
from contracts.errors import UnavailableError
from contracts.events import AuditRecord
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from contracts.topics import AUDIT, SAMPLES
from learner.loop import run
from learner.progress import Progress
from tests.broker_contract.clients import admin_client
from tests.learner.reading import no_means
from tests.topic_log import events
from tests.until import until

SendSamples = Callable[[Kafka, int, int], None]
Run = Callable[[Event], Progress]
SECONDS = 120.0


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return replace(settings, kafka=kafka)


@pytest.fixture
def learn(settings: Settings, clock: ManualClock, new_id: NewId) -> Run:
    return lambda stop: run(settings, clock, new_id, stop, no_means, process="learner")


def _learn_two_batches(learn: Run, kafka: Kafka) -> None:
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(learn, stop)
        try:
            _await_batches(kafka, 2)
        finally:
            stop.set()
        assert running.result(SECONDS).next_offset == 16


def _refusal(learn: Run) -> str:
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(learn, stop)
        try:
            with pytest.raises(UnavailableError) as error:
                running.result(SECONDS)
        finally:
            stop.set()
    return str(error.value)


def _await_batches(kafka: Kafka, batches: int) -> None:
    def learned() -> bool:
        found = events(kafka, AUDIT, AuditRecord)
        return sum(one.action == "batch.learned" for one in found) >= batches

    until(f"{batches} batches", learned, SECONDS)


def _make_anew(kafka: Kafka) -> None:
    with admin_client(kafka) as admin:
        admin.delete_topics([SAMPLES.full_name(kafka.prefix)])
    create_topics(kafka)


def test_a_topic_made_anew_stops_a_learner_that_starts_and_says_what_to_do(
    learn: Run, kafka: Kafka, send_samples: SendSamples
) -> None:
    send_samples(kafka, 0, 16)
    _learn_two_batches(learn, kafka)
    _make_anew(kafka)
    send_samples(kafka, 20, 32)
    said = _refusal(learn)
    assert "ends at offset 12" in said
    assert "before 16 were learned from" in said
    assert "restore the topic" in said
    assert "another state_dir" in said


def test_a_topic_made_anew_stops_a_learner_that_reads_it(
    learn: Run, kafka: Kafka, send_samples: SendSamples
) -> None:
    send_samples(kafka, 0, 16)
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(learn, stop)
        try:
            _await_batches(kafka, 2)
            _make_anew(kafka)
            send_samples(kafka, 20, 32)
            with pytest.raises(UnavailableError, match="before 16 were learned from"):
                running.result(SECONDS)
        finally:
            stop.set()


def test_a_topic_made_anew_that_is_longer_than_what_was_learned_stops_the_learner(
    learn: Run, kafka: Kafka, send_samples: SendSamples
) -> None:
    send_samples(kafka, 0, 16)
    _learn_two_batches(learn, kafka)
    _make_anew(kafka)
    send_samples(kafka, 20, 60)
    said = _refusal(learn)
    assert "at offset 15, where" in said
    assert "was learned from: the broker has lost records, or this is another log" in said


def test_a_topic_of_several_partitions_has_no_order_to_learn_in(
    settings: Settings, kafka: Kafka, clock: ManualClock, new_id: NewId
) -> None:
    split = replace(kafka, prefix=f"{kafka.prefix}split-")
    create_topics(split, (replace(SAMPLES, partitions=3),))
    given = replace(settings, kafka=split)
    said = _refusal(lambda stop: run(given, clock, new_id, stop, no_means, process="learner"))
    assert "split-samples has 3 partitions and must have 1" in said


def test_versions_that_cannot_be_made_again_stop_a_learner_that_lost_its_checkpoints(
    learn: Run, settings: Settings, kafka: Kafka, send_samples: SendSamples
) -> None:
    send_samples(kafka, 0, 16)
    _learn_two_batches(learn, kafka)
    for kind in ("checkpoints", "states"):
        shutil.rmtree(settings.state_dir / kind)
    with admin_client(kafka) as admin:
        admin.delete_records({TopicPartition(SAMPLES.full_name(kafka.prefix), 0): 4})
    said = _refusal(learn)
    assert "begins at offset 4" in said
    assert "published 0 versions, but there are 1" in said
