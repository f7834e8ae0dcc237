"""The Faust worker: reads both topics, runs the `flow`, delivers, and commits in order.

Offsets are acknowledged to Faust only after all that follows from a record was delivered, and
strictly in order per partition; so the open windows are rebuilt from the log after a crash or a
rebalance, and no table is kept. Faust is used here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from datetime import datetime
from typing import Any

import faust

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import Clock
from contracts.heartbeat import beat
from contracts.settings import Settings
from contracts.topics import DECISIONS, FEEDBACK, Topic
from contracts.tracing import span
from streams.commits import forget_refused
from streams.delivery import Delivery, FeatureLog
from streams.fetching import pace, rewind_uncommitted
from streams.flow import Flow
from streams.header_names import read_any_header_name
from streams.intake import Intake
from streams.log_lookup import LogLookup
from streams.membership import Membership, keep_member_id
from streams.step import Step
from streams.tally import Fact

_log = logging.getLogger(__name__)

CLOSE_LIMIT = 500
STALL_SECONDS = 45.0
"""With records to read and none read for this long, the process ends, to be started anew."""

ADMIN_SECONDS = 10.0
LAG_SECONDS = 1.0


class Worker:
    """One member of the consumer group, with everything it holds."""

    def __init__(
        self,
        settings: Settings,
        number: int,
        clock: Clock,
        audit: AuditChain,
        features: FeatureLog,
    ) -> None:
        self.settings, self.clock, self.features = settings, clock, features
        self.name = f"streams-{number}"
        client_id = f"headrace-{self.name}"
        self.delivery = Delivery(settings.kafka, f"{client_id}-producer")
        self.lookup = LogLookup(settings.kafka, f"{client_id}-lookup")
        self.flow = Flow(settings, audit, source=f"headrace/{self.name}")
        read_any_header_name()
        self.app = make_app(settings, client_id, number)
        self._intake = Intake(2 * settings.streams.flush_rows)
        self._intake.connect(self.app)
        self._lock = asyncio.Lock()
        self._held: dict[Any, deque[Any]] = defaultdict(deque)
        self._lag: int | None = None
        self._progress = (clock.monotonic(), -1)
        self._paused = self._is_assigned = False
        self._handovers = 0
        self._begins: dict[Any, int] = {}
        self._look_again_at = 0.0
        self._corrected: Any = None
        self._membership = Membership(clock)
        self._connect()

    def _connect(self) -> None:
        prefix = self.settings.kafka.prefix
        self._topics: dict[str, Topic] = {t.full_name(prefix): t for t in (DECISIONS, FEEDBACK)}
        both = self.app.topic(
            *self._topics,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            internal=False,
        )
        self.app.agent(both, name=f"{prefix}flow")(self._read)
        self.app.on_partitions_revoked.connect(self._on_revoked)
        self.app.on_partitions_assigned.connect(self._on_assigned)

    async def _read(self, _: Any) -> None:
        """Take batches for as long as the app runs; each batch is retried until delivered."""
        streams = self.settings.streams
        try:
            async for messages in self._intake.batches(streams.flush_rows, streams.flush_seconds):
                await self._take(messages)
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends by it
            # Faust would begin this agent again without the batch, and commit past it.
            await self.app.crash(error)

    async def _take(self, messages: list[Any]) -> None:
        """Read a batch, and deliver what follows from it."""
        handovers = self._handovers
        async with self._lock:
            now = self.clock.now()
            records = [self._received(message) for message in messages]
            await self._recall(records, now)
            # No await between this and `read`. A group that a broker forgot begins its
            # generations anew, so that their number alone does not tell.
            if handovers != self._handovers:
                return  # partitions have changed hands: it will be read again
            current, generation = [], self.app.consumer_generation_id
            for message, record in zip(messages, records, strict=True):
                if message.generation_id == generation:
                    self._held[message.tp].append(message)
                    current.append(record)
            read = self.flow.read(current, now)
            # What a final signal closed need not wait for the timer, nor for another delivery.
            await self._finish(read, self.flow.close(now, CLOSE_LIMIT))

    async def _recall(self, records: list[Received], now: datetime) -> None:
        """Read again what was forgotten of the sessions that these records concern."""
        indexes = await self.features.indexes(self.flow.unknown_sessions(records))
        for wanted in self.flow.wanted(records, indexes):
            self.flow.recall(wanted, await self.lookup.read(wanted), now)

    async def close_windows(self) -> None:
        """Close the windows whose feedback has all been read."""
        while True:
            async with self._lock:
                step = self.flow.close(self.clock.now(), CLOSE_LIMIT)
                if not step:
                    break
                await self._finish(step)
        self._limit_open()

    async def _finish(self, *steps: Step) -> None:
        """Deliver steps, let go of them, write their features, acknowledge what is then done.

        Where partitions have changed hands meanwhile nothing of it counts: it is read again.
        """
        handovers = self._handovers

        async def is_ours() -> bool:
            return await self._is_member() and handovers == self._handovers

        if not await self.delivery.send([r for step in steps for r in step.records], is_ours):
            _log.warning("partitions have changed hands: what was made of them is not sent")
            return
        for step in steps:
            self.flow.settle(step)
        await self._write_features([fact for step in steps for fact in step.facts])
        for number, partition in self.flow.partitions.items():
            self._acknowledge(DECISIONS, number, partition.decisions.offsets.committable)
            self._acknowledge(FEEDBACK, number, partition.feedback.offsets.committable)

    async def _write_features(self, facts: list[Fact]) -> None:
        """Write the features that follow from steps, and say so in the audit."""
        if not facts:
            return
        told = Step(self.flow.source)
        with span("features", links=[fact.trace for fact in facts]):
            written = await self.features.record(facts, shared=self._is_shared())
            self.flow.trail.features(told, facts, written=written)
        await self.delivery.send(told.records)

    async def _is_member(self) -> bool:
        if self._membership.is_fresh():
            return True
        asked = self.app.consumer._thread.call_thread(self._membership.confirm)
        return bool(await asyncio.wait_for(asked, ADMIN_SECONDS))

    def _acknowledge(self, topic: Topic, partition: int, committable: int | None) -> None:
        held = self._held.get(self._place(topic, partition))
        while held and committable is not None and held[0].offset < committable:
            held.popleft().ack(self.app.consumer)

    async def see_ends(self) -> None:
        """Ask the broker for the ends of our partitions, when a window may close by it and at
        least once a second for the lag."""
        reaches = {
            self._place(topic, number): reach
            for number, partition in self.flow.partitions.items()
            for topic, reach in ((DECISIONS, partition.decisions), (FEEDBACK, partition.feedback))
        }
        now, monotonic = self.clock.now(), self.clock.monotonic()
        may_close = any(p.awaits_ends(now) for p in self.flow.partitions.values())
        if not reaches or not (may_close or monotonic >= self._look_again_at):
            return
        self._look_again_at = monotonic + LAG_SECONDS
        consumer = self.app.consumer
        ends = await asyncio.wait_for(consumer.highwaters(*reaches), ADMIN_SECONDS)
        unknown = reaches.keys() - self._begins.keys()
        if unknown:
            begins = await asyncio.wait_for(consumer.earliest_offsets(*unknown), ADMIN_SECONDS)
            self._begins.update(begins)
        lag = 0
        for place, reach in reaches.items():
            # Faust sets this when it seeks after an assignment; before, the beginning is a safe
            # guess: it never makes a partition look read that is not.
            start = max(consumer._committed_offset[place] or 0, self._begins[place])
            reach.see(ends[place], start, now)
            position = start if reach.offsets.next is None else reach.offsets.next
            lag += max(0, ends[place] - position)
        self._lag = lag

    def _limit_open(self) -> None:
        """Stop reading decisions while too many are open; feedback goes on, so that they close."""
        limit = self.settings.streams.max_open_decisions
        places = {self._place(DECISIONS, number) for number in self.flow.partitions}
        if self.flow.open_decisions >= limit:
            self.app.consumer.pause_partitions(places)
            self._paused = True
        elif self._paused and self.flow.open_decisions < 0.9 * limit:
            self.app.consumer.resume_partitions(places)
            self._paused = False

    async def _on_revoked(self, _: Any, revoked: Any, **__: Any) -> None:
        _log.info("partitions revoked: %d", len(revoked))
        self._begin(())
        self._is_assigned = False

    async def _on_assigned(self, _: Any, assigned: Any, **__: Any) -> None:
        by_topic: dict[str, set[int]] = {name: set() for name in self._topics}
        for place in assigned:
            if place.topic in by_topic:
                by_topic[place.topic].add(place.partition)
        decisions, feedback = by_topic.values()
        if decisions != feedback:
            raise RuntimeError(
                f"assigned decisions {sorted(decisions)} but feedback {sorted(feedback)}: "
                "both topics need the same number of partitions"
            )
        _log.info("partitions assigned: %s", sorted(decisions))
        self._correct_consumer()
        self._begin(decisions)
        self.features.keep(decisions)
        self._is_assigned = True

    def _correct_consumer(self) -> None:
        """Correct the consumer once it is there, which is before Faust reads from it."""
        thread = self.app.consumer._thread
        if thread is not self._corrected:
            consumer = thread._ensure_consumer()
            pace(consumer._fetcher)
            rewind_uncommitted(thread)
            forget_refused(self.app.consumer)
            keep_member_id(consumer._coordinator)
            self._membership.watch(consumer._coordinator)
            self._corrected = thread

    def _begin(self, partitions: Any) -> None:
        self._handovers += 1
        self._intake.clear()
        self.flow.assign(partitions)
        self._held.clear()
        self._begins.clear()
        self._lag = None
        self.features.forget()
        self._paused = False

    def beat(self) -> None:
        """Write the heartbeat; a member that others leave no partition is ready, and has no lag."""
        counts = {**dict.fromkeys(COUNTED, 0), **self.flow.counts}
        counts |= {"open": self.flow.open_decisions, "feature_failures": self.features.failures}
        beat(
            self.settings.state_dir,
            self.name,
            self.clock,
            ready=self._is_assigned,
            lag=0 if self._is_assigned and not self.flow.partitions else self._lag,
            counts=counts,
            note=self.delivery.waiting or self.lookup.waiting,
        )

    def is_stalled(self) -> bool:
        """Say whether nothing was read for long although there is something to read."""
        now = self.clock.monotonic()
        read = self.flow.counts.total()
        since, before = self._progress
        if read != before or not self._lag or self._paused or self.delivery.waiting:
            self._progress = (now, read)
            return False
        return now - since > STALL_SECONDS

    def _is_shared(self) -> bool:
        """Say whether others may own partitions too; unknown metadata count as that."""
        topic = DECISIONS.full_name(self.settings.kafka.prefix)
        return bool(len(self.flow.partitions) != self.app.consumer.topic_partitions(topic))

    def _place(self, topic: Topic, partition: int) -> Any:
        return faust.types.TP(topic.full_name(self.settings.kafka.prefix), partition)

    def _received(self, message: Any) -> Received:
        return Received(
            topic=self._topics[message.topic],
            partition=message.partition,
            offset=message.offset,
            key=message.key,
            value=message.value,
            headers=list(message.headers or ()),
        )


COUNTED = (
    *("decisions", "feedback", "rewards", "samples"),
    *("dead_letters", "duplicates", "set_aside", "corrections_withheld"),
    *("revisions", "quarantined", "preferences"),
)


def make_app(settings: Settings, client_id: str, number: int) -> Any:
    """Return the Faust app: a group member without tables, web server or topics of its own."""
    window = settings.streams.window_seconds
    brokers = settings.kafka.bootstrap.split(",")
    folder = settings.state_dir / "streams" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    return faust.App(
        f"{settings.kafka.prefix}streams",
        broker=";".join(f"kafka://{broker.strip()}" for broker in brokers),
        broker_client_id=client_id,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=1.0,
        broker_max_poll_records=settings.streams.flush_rows,
        broker_commit_livelock_soft_timeout=window + 300.0,
        stream_processing_timeout=window + 300.0,
        stream_wait_empty=False,  # records wait for their window; a rebalance must not
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 << 20,
        datadir=str(folder),
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )
