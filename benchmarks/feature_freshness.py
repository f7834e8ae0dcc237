"""How soon does the next request see what just happened? From an event to its online feature.

``python -m benchmarks.feature_freshness`` starts a broker, a stream worker and, for Redis, a server
of its own, sends decisions and ratings one after the other, and asks the gateway's reader until it
sees each of them. It writes ``benchmarks/results/feature_freshness.json`` and prints its table;
``--table`` prints what is there. A decision counts from when the broker has it to when
``user.decisions`` shows it; a rating, which closes its window at once here, to when
``user.reward_mean`` does. Every decision is of a new user, so that no row is in a cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
import numpy as np

from benchmarks.loop import RESULTS, commit, machine
from benchmarks.server_process import wait_until
from console.local_broker import LocalBroker
from console.store_servers import redis_server
from contracts.broker import create_topics, make_producer, send_and_wait
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.events import (
    Assignment,
    Decision,
    FeatureValue,
    Feedback,
    Message,
    Sampling,
    Timings,
)
from contracts.heartbeat import read_heartbeat
from contracts.ids import uuid7_ids
from contracts.settings import Features, Quarantine, Settings, Streams, to_environment
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.reader import OnlineReader

FILE = RESULTS / "feature_freshness.json"
SEEN_SECONDS, START_SECONDS, STOP_SECONDS = 30.0, 120.0, 30.0
LOOK_SECONDS = 0.001
STORES: tuple[Literal["sqlite", "redis"], ...] = ("sqlite", "redis")


def main() -> int:
    """Measure and print the table."""
    options = _options()
    if not options.table:
        origin = {"machine": machine(), "commit": commit(), "events": options.events}
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            redis, _ = stack.enter_context(redis_server())
            broker = stack.enter_context(LocalBroker(folder / "broker"))
            found = {
                store: measured(_settings(folder / store, broker, store, redis), options.events)
                for store in STORES
            }
        result = {**origin, "milliseconds": found}
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(table(msgspec.json.decode(options.out.read_bytes())))
    return 0


def _settings(
    folder: Path, broker: LocalBroker, store: Literal["sqlite", "redis"], redis: str
) -> Settings:
    kafka = msgspec.structs.replace(broker.kafka, prefix=f"{store}-")
    streams = Streams(final_signals=("rating",), quarantine=Quarantine(proof="optional"))
    features = Features(online=store, redis=redis)
    return Settings(state_dir=folder, kafka=kafka, streams=streams, features=features)


def measured(settings: Settings, events: int) -> dict[str, list[float]]:
    """Return the milliseconds until each decision and each rating was seen."""
    create_topics(settings.kafka)
    clock = SystemClock()
    new_id = uuid7_ids(clock)
    producer = make_producer(settings.kafka, "freshness")
    found: dict[str, list[float]] = {"decision": [], "rating": []}
    with _worker(settings):
        reader = OnlineReader(settings)
        for number in range(events):
            made = _decision(new_id(), f"user-{number}")
            rating = _rating(new_id(), made)
            for kind, topic, event, feature in (
                ("decision", DECISIONS, made, "user.decisions"),
                ("rating", FEEDBACK, rating, "user.reward_mean"),
            ):
                send_and_wait(producer, settings.kafka, encode(topic, event, source="benchmark"))
                began = time.perf_counter()
                _until_seen(reader, made, feature)
                found[kind].append(1000 * (time.perf_counter() - began))
    producer.close()
    return found


def _until_seen(reader: OnlineReader, made: Decision, feature: str) -> None:
    deadline = time.monotonic() + SEEN_SECONDS

    def value() -> FeatureValue:
        now = datetime.now(UTC)
        return reader.read(made.user_id, made.session_id, "base", now)[feature]

    while value().value is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{feature} of {made.user_id} not seen within {SEEN_SECONDS} s")
        time.sleep(LOOK_SECONDS)


@contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    environment = {**os.environ, **to_environment(settings), "OMP_NUM_THREADS": "1"}
    settings.state_dir.mkdir(parents=True)
    log = settings.state_dir / "streams.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams"], env=environment, stdout=file, stderr=file
        )
    try:
        wait_until(_ready(settings, process, log), "the stream worker", START_SECONDS)
        yield
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _ready(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> Callable[[], bool]:
    def is_ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the stream worker ended:\n{log.read_text()[-3000:]}")
        beat = read_heartbeat(settings.state_dir, "streams-1")
        return beat is not None and beat.ready

    return is_ready


def _decision(name: str, user_id: str) -> Decision:
    answer = "Hold the button for ten seconds. " * 4
    return Decision(
        id=name,
        time=datetime.now(UTC),
        session_id=f"session of {user_id}",
        user_id=user_id,
        assignment=Assignment(policy="assistant", policy_version="base"),
        messages=(Message(role="user", content="How do I reset the router? " * 4),),
        answer=Message(role="assistant", content=answer),
        action="answer",
        text=answer,
        prompt_token_ids=tuple(range(40)),
        token_ids=tuple(range(30)),
        logprobs=(-0.5,) * 30,
        sampling=Sampling(),
        finish_reason="stop",
        timings=Timings(total_seconds=0.5),
        engine="benchmark",
    )


def _rating(name: str, made: Decision) -> Feedback:
    return Feedback(
        id=name,
        time=datetime.now(UTC),
        decision_id=made.id,
        session_id=made.session_id,
        user_id=made.user_id,
        kind="rating",
        score=1.0,
    )


def table(found: dict[str, Any]) -> str:
    """Return the table of a result."""
    lines = ["| store | event | p50 ms | p99 ms | most |", "|---|---|---|---|---|"]
    for store, kinds in found["milliseconds"].items():
        for kind, values in kinds.items():
            p50, p99 = np.percentile(values, [50, 99])
            lines.append(f"| {store} | {kind} | {p50:.0f} | {p99:.0f} | {max(values):.0f} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feature_freshness", description=__doc__
    )
    parser.add_argument("--events", type=int, default=200, help="decisions, and as many ratings")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the table only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
