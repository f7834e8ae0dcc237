"""The peers of the streams benchmark: ``python -m benchmarks.streams_peers KIND JOB``.

``faust`` is an agent that takes one event at a time, ``aiokafka`` a loop over batches, ``quix`` and
``bytewax`` are dataflows of theirs; all run a job of `benchmarks.streams_jobs`, ``whole`` or
``short``; ``copy`` sends as many bytes as our worker does for the same records. Settings come from
the environment, as for our own processes.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.streams_jobs import JOBS, Job
from contracts.broker import Received
from contracts.codec import Record
from contracts.settings import Settings, load_settings
from contracts.topics import AUDIT, DECISIONS, FEEDBACK, REWARDS, SAMPLES, Topic
from streams.__main__ import GC_THRESHOLD

COMMIT_SECONDS = 1.0
BATCH = 500
LINGER_MS = 5

OUT = (REWARDS, SAMPLES, AUDIT)


def run_faust(settings: Settings, job: Job) -> None:
    """Run one agent over both topics, one event at a time."""
    import faust

    from streams.worker import make_app

    topics = _topics(settings)
    app = make_app(settings, "peer-faust", 1)
    app.conf.producer_linger = LINGER_MS / 1000
    raw = {"value_serializer": "raw", "key_serializer": "raw", "key_type": bytes}
    both = app.topic(*topics, value_type=bytes, internal=False, **raw)
    out = {
        topic.name: app.topic(topic.full_name(settings.kafka.prefix), value_type=bytes, **raw)
        for topic in OUT
    }

    async def process(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            for record in job.take(_received(topics[message.topic], message)):
                await out[record.topic.name].send(
                    key=record.key, value=record.value, headers=dict(record.headers)
                )

    async def flush() -> None:
        await asyncio.to_thread(job.flush)

    async def paced(*_: Any, **__: Any) -> None:
        from streams.fetching import pace

        pace(app.consumer._thread._ensure_consumer()._fetcher)

    app.agent(both)(process)
    app.timer(0.1)(flush)
    app.on_partitions_assigned.connect(paced)
    faust.Worker(app, loglevel="WARN", quiet=True).execute_from_commandline()


def run_aiokafka(settings: Settings, job: Job) -> None:
    """Run the job on batches of raw records."""
    asyncio.run(_loop(settings, job))


class _Copying:
    """Sends what our worker sends, byte for byte as much, without looking at what was read."""

    def __init__(self, settings: Settings) -> None:
        from benchmarks.streams_plumbing import templates

        self._templates = templates(settings)

    def take(self, record: Received) -> list[Record]:
        from benchmarks.streams_plumbing import copies

        return copies(self._templates, record)

    def wants_flush(self) -> bool:
        return False

    def flush(self) -> None:
        raise AssertionError("copies have no features")


async def _loop(settings: Settings, job: Job) -> None:
    """Read a batch, send what follows, wait for the acknowledgements, commit every second."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    from streams.fetching import pace

    kafka, topics = settings.kafka, _topics(settings)
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=kafka.bootstrap,
        group_id=f"{kafka.prefix}peer",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 << 20,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, acks="all", enable_idempotence=True, linger_ms=LINGER_MS
    )
    await consumer.start()
    await producer.start()
    pace(consumer._fetcher)  # as our worker does: else an empty fetch is asked for at once again
    names = {topic.name: topic.full_name(kafka.prefix) for topic in OUT}
    committed = time.monotonic()
    while True:
        batches = await consumer.getmany(timeout_ms=100, max_records=BATCH)
        acks = []
        for place, records in batches.items():
            topic = topics[place.topic]
            for record in records:
                for made in job.take(_received(topic, record)):
                    name = names[made.topic.name]
                    acks.append(
                        await producer.send(name, made.value, key=made.key, headers=made.headers)
                    )
        await asyncio.gather(*acks)
        if job.wants_flush():
            await asyncio.to_thread(job.flush)
        if time.monotonic() - committed >= COMMIT_SECONDS:
            await consumer.commit()
            committed = time.monotonic()


def run_quix(settings: Settings, job: Job) -> None:
    """Run the job as a function applied to each message."""
    from quixstreams import Application, message_context
    from quixstreams.models.serializers import Serializer

    kafka = settings.kafka
    app = Application(
        broker_address=kafka.bootstrap,
        consumer_group=f"{kafka.prefix}peer",
        auto_offset_reset="earliest",
        commit_interval=COMMIT_SECONDS,
        producer_extra_config={"linger.ms": LINGER_MS, "acks": "all"},
        auto_create_topics=False,
        use_changelog_topics=False,
        state_dir=settings.state_dir / "quix",
        loglevel="WARNING",
    )

    class ValueOf(Serializer):  # type: ignore[misc] # Quix Streams is not in this environment
        def __call__(self, record: Record, ctx: Any) -> bytes:
            return record.value

    raw = {"value_serializer": ValueOf(), "key_serializer": "bytes"}
    out = {t.name: app.topic(t.full_name(kafka.prefix), **raw) for t in OUT}
    for full_name, topic in _topics(settings).items():

        def take(value: bytes, key: Any, _: Any, headers: Any, *, of: Topic = topic) -> Any:
            if job.wants_flush():
                job.flush()
            here = message_context()
            return job.take(Received(of, here.partition, here.offset, key, value, headers))

        source = app.topic(full_name, value_deserializer="bytes", key_deserializer="bytes")
        made = app.dataframe(source).apply(take, metadata=True, expand=True)
        made = made.set_headers(lambda record, *_: record.headers)
        # One branch, its topic chosen per record: several would each have a copy, by pickle.
        made.to_topic(lambda record, *_: out[record.topic.name], key=lambda record: record.key)
    app.run()


def run_bytewax(settings: Settings, job: Job) -> None:
    """Run the job as a flat map between a source and a sink."""
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.run import cli_main

    kafka, topics = settings.kafka, _topics(settings)

    def take(message: Any) -> Iterable[Any]:
        if job.wants_flush():
            job.flush()
        for record in job.take(_received(topics[message.topic], message)):
            yield KafkaSinkMessage(
                record.key,
                record.value,
                headers=record.headers,
                topic=record.topic.full_name(kafka.prefix),
            )

    flow = Dataflow("job")
    source = op.input("in", flow, KafkaSource([kafka.bootstrap], list(topics)))
    sink = KafkaSink([kafka.bootstrap], None, {"linger.ms": str(LINGER_MS), "acks": "all"})
    op.output("out", op.flat_map("take", source, take), sink)
    cli_main(flow)


def _topics(settings: Settings) -> dict[str, Topic]:
    return {topic.full_name(settings.kafka.prefix): topic for topic in (DECISIONS, FEEDBACK)}


def _received(topic: Topic, message: Any) -> Received:
    """Return a record of Faust, aiokafka or bytewax, which name its parts alike."""
    return Received(
        topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        list(message.headers or ()),
    )


KINDS: dict[str, Callable[[Settings, Job], None]] = {
    "faust": run_faust,
    "aiokafka": run_aiokafka,
    "quix": run_quix,
    "bytewax": run_bytewax,
}


def main(kind: str, job: str) -> None:
    """Run a peer with a job, or with copies in its place; garbage collected as in our worker."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    settings = load_settings()
    doing: Job = _Copying(settings) if job == "copy" else JOBS[job](settings)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    KINDS[kind](settings, doing)


if __name__ == "__main__":
    main(*sys.argv[-2:])
