"""Our worker with its plumbing alone: ``python -m benchmarks.streams_plumbing``, until SIGTERM.

Worker, Faust, batches, offsets, delivery and commits are those of ``python -m streams``; in the
place of the flow's work each record is answered by copies of what our worker sends for its like.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import cast

import msgspec

from benchmarks.streams_load import interaction
from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import SystemClock
from contracts.codec import Record
from contracts.ids import uuid7_ids
from contracts.settings import Settings, load_settings
from contracts.topics import DECISIONS
from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter
from streams.delivery import FeatureLog
from streams.flow import Flow
from streams.recall import Wanted
from streams.session import Index
from streams.step import Step

Templates = dict[str, list[Record]]
"""Name of the topic read to what is sent for one record of it."""


def templates(settings: Settings) -> Templates:
    """Return what our worker sends for one decision, and for the rating that closes it."""
    streams = msgspec.structs.replace(settings.streams, final_signals=("rating",))
    settings = msgspec.structs.replace(settings, streams=streams)
    clock = SystemClock()
    flow = Flow(settings, AuditChain("copy", clock, uuid7_ids(clock)), source="headrace/streams-1")
    flow.assign([0])
    found = {}
    for record in interaction(clock.now(), uuid7_ids(clock), 0):
        received = Received(record.topic, 0, 0, record.key, record.value, record.headers)
        step = flow.read([received], clock.now())
        closed = flow.close(clock.now(), 1)
        found[record.topic.name] = [*step.records, *closed.records]
        flow.settle(step)
        flow.settle(closed)
    return found


def copies(found: Templates, record: Received) -> list[Record]:
    """Return what is sent for a record: the bytes of its like under its own key."""
    key = record.key or b""
    return [
        Record(template.topic, key, template.value, template.headers)
        for template in found[record.topic.name]
    ]


class CopyingFlow(Flow):
    """Answers each record by copies, and knows no sessions."""

    def __init__(self, settings: Settings, audit: AuditChain, source: str) -> None:
        super().__init__(settings, audit, source)
        self._templates = templates(settings)

    def unknown_sessions(self, records: Iterable[Received]) -> dict[str, int]:
        """Return that no session has to be looked up."""
        return {}

    def wanted(
        self,
        records: Iterable[Received],
        indexes: Mapping[str, Index],
    ) -> list[Wanted]:
        """Return that nothing has to be read again."""
        return []

    def read(self, records: Sequence[Received], now: datetime) -> Step:
        """Copy; every offset is done once the copies are delivered."""
        step = Step(self.source)
        for record in records:
            partition = self.partitions.get(record.partition)
            if partition is None:
                continue
            reach = partition.decisions if record.topic is DECISIONS else partition.feedback
            if reach.offsets.read(record.offset):
                step.records += copies(self._templates, record)
                step.done.append((reach.offsets, record.offset))
                self.counts[record.topic.name] += 1
        return step


class NoStore:
    """A feature store that knows nothing and is given nothing."""

    def latest(
        self,
        view: str,
        keys: Sequence[str],
    ) -> dict[str, tuple[dict[str, Value], datetime]]:
        """Return no row."""
        return {}

    def write(self, rows: Sequence[FeatureRow]) -> int:
        """Refuse: a copying flow has no facts."""
        raise AssertionError(f"{len(rows)} rows of a flow that has no facts")


async def _run(settings: Settings) -> int:
    from streams.__main__ import serve
    from streams.worker import Worker

    stop, clock = asyncio.Event(), SystemClock()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    audit = AuditChain("streams-1", clock, uuid7_ids(clock))
    worker = Worker(settings, 1, clock, audit, FeatureLog(cast("FeatureWriter", NoStore())))
    worker.flow = CopyingFlow(settings, audit, source="headrace/streams-1")
    try:
        return await serve(worker, stop)
    finally:
        await worker.delivery.close()
        await worker.lookup.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(load_settings())))
