"""A worker in this process on a real broker: what becomes of a batch that it has in hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.audit import AuditChain
from contracts.broker import create_topics
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.events import Decision
from contracts.ids import uuid7_ids
from contracts.settings import Kafka, Settings, Streams
from contracts.topics import DECISIONS
from feature_store.writer import FeatureWriter
from streams.__main__ import serve
from streams.delivery import FeatureLog
from streams.worker import Worker
from tests.topic_log import write
from tests.until import until_async


def _worker(kafka: Kafka, folder: Path, window_seconds: float = 600.0) -> Worker:
    clock, streams = SystemClock(), Streams(window_seconds=window_seconds)
    settings = Settings(state_dir=folder, kafka=kafka, streams=streams)
    audit = AuditChain("streams", clock, uuid7_ids(clock))
    return Worker(settings, 1, clock, audit, FeatureLog(FeatureWriter(settings, clock)))


async def _publish(kafka: Kafka, decisions: list[Decision]) -> None:
    await asyncio.to_thread(write, kafka, *(encode(DECISIONS, d, source="test") for d in decisions))


def _open(worker: Worker) -> set[str]:
    sessions = (s for p in worker.flow.partitions.values() for s in p.sessions.values())
    return {decision_id for session in sessions for decision_id in session.turns}


async def test_a_batch_taken_before_the_broker_restarted_does_not_pass_what_was_open(
    decision: Any, tmp_path: Path
) -> None:
    with LocalBroker(tmp_path / "broker") as broker:
        kafka = msgspec.structs.replace(broker.kafka, partitions=1)
        create_topics(kafka)
        worker = _worker(kafka, tmp_path / "state")
        first, second = ([decision(session_id=f"{n}-{of}") for n in range(5)] for of in "ab")
        await worker.app.start()
        try:
            await _publish(kafka, first)
            await until_async("the first", lambda: len(_open(worker)) == 5, 60.0)
            before = worker.app.consumer_generation_id
            async with worker._lock:  # as while a delivery waits for the broker
                await _publish(kafka, second)
                read = worker.app.consumer._read_offset
                await until_async(
                    "a batch in hand", lambda: 9 in read.values() and not len(worker._intake), 60.0
                )
                await asyncio.to_thread(broker.stop)
                await asyncio.to_thread(broker.start)
                await until_async("the handover", lambda: not worker._is_assigned, 60.0)
                await until_async("the assignment", lambda: worker._is_assigned, 60.0)
                assert worker.app.consumer_generation_id == before, "then nothing is shown here"
            sent = {made.id for made in first + second}
            await until_async(
                "all", lambda: _open(worker) == sent, 30.0, state=lambda: _open(worker)
            )
        finally:
            await worker.app.stop()
            await worker.delivery.close()
            await worker.lookup.close()


async def test_an_error_that_nobody_foresaw_ends_the_process_and_nothing_is_committed_past_it(
    broker: LocalBroker, decision: Any, new_id: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = msgspec.structs.replace(broker.kafka, prefix=f"t-{new_id()}-", partitions=1)
    create_topics(kafka)
    worker = _worker(kafka, tmp_path / "state", window_seconds=0.1)
    stop = asyncio.Event()
    running = asyncio.create_task(serve(worker, stop))
    try:
        await _publish(kafka, [decision()])
        committed = worker.app.consumer._committed_offset
        await until_async("a commit", lambda: 1 in committed.values(), 60.0)

        failed = asyncio.Event()

        def fail(_: Any) -> None:
            monkeypatch.undo()
            failed.set()
            raise RuntimeError("nobody foresaw it")

        monkeypatch.setattr(worker.flow, "unknown_sessions", fail)
        await _publish(kafka, [decision()])
        await asyncio.wait_for(failed.wait(), 30.0)
        await _publish(kafka, [decision()])
        await until_async("the end", running.done, 30.0)
        assert running.result() == 1
        assert max(filter(None, committed.values())) == 1
    finally:
        stop.set()
        await running
        await worker.delivery.close()
        await worker.lookup.close()
