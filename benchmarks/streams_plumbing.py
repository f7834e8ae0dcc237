"""Our worker with other work: ``python -m benchmarks.streams_plumbing JOB``, until SIGTERM.

Worker, Faust, batches, offsets, delivery and commits are those of ``python -m streams``. ``copy``:
in the place of the flow's work each record is answered by copies of what our worker sends for its
like. ``short``: by what `benchmarks.streams_jobs.ShortJob` makes of it.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import cast

import msgspec

from benchmarks.streams_jobs import ShortJob
from benchmarks.streams_load import interaction
from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import Clock, SystemClock
from contracts.codec import Record
from contracts.ids import uuid7_ids
from contracts.settings import Settings, load_settings
from contracts.topics import DECISIONS
from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter
from streams.__main__ import GC_THRESHOLD, serve
from streams.delivery import FeatureLog
from streams.flow import Flow
from streams.recall import Wanted
from streams.session import Index
from streams.step import Step
from streams.tally import Fact
from streams.worker import Worker

Answer = Callable[[Received], list[Record]]
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


class ReplacedFlow(Flow):
    """Answers each record by what a function makes of it, and knows no sessions."""

    def __init__(self, settings: Settings, audit: AuditChain, answer: Answer) -> None:
        super().__init__(settings, audit, source="headrace/streams-1")
        self._answer = answer

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
        """Answer; every offset is done once the answers are delivered."""
        step = Step(self.source)
        for record in records:
            partition = self.partitions.get(record.partition)
            if partition is None:
                continue
            reach = partition.decisions if record.topic is DECISIONS else partition.feedback
            if reach.offsets.read(record.offset):
                step.records += self._answer(record)
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
        """Refuse: this flow has no facts."""
        raise AssertionError(f"{len(rows)} rows of a flow that has no facts")


class ShortJobWorker(Worker):
    """Our worker with the short job, whose rows it writes after what was delivered."""

    def __init__(self, settings: Settings, clock: Clock, audit: AuditChain) -> None:
        super().__init__(settings, 1, clock, audit, _no_features())
        self._job = ShortJob(settings)
        self.flow = ReplacedFlow(settings, audit, self._job.take)

    async def _write_features(self, _: list[Fact]) -> None:
        if self._job.wants_flush():
            await asyncio.to_thread(self._job.flush)


def _no_features() -> FeatureLog:
    return FeatureLog(cast("FeatureWriter", NoStore()))


def _worker(settings: Settings, job: str) -> Worker:
    clock = SystemClock()
    audit = AuditChain("streams-1", clock, uuid7_ids(clock))
    if job == "short":
        return ShortJobWorker(settings, clock, audit)
    worker = Worker(settings, 1, clock, audit, _no_features())
    found = templates(settings)
    worker.flow = ReplacedFlow(settings, audit, lambda record: copies(found, record))
    return worker


async def _run(settings: Settings, job: str) -> int:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = _worker(settings, job)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        return await serve(worker, stop)
    finally:
        await worker.delivery.close()
        await worker.lookup.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(load_settings(), sys.argv[1])))
