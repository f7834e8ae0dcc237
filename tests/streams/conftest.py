"""Decisions and feedback made by hand, and a real worker process on the real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from console.local_broker import LocalBroker, remove_dead_members
from contracts.broker import create_topics, make_producer, send
from contracts.clock import SystemClock
from contracts.codec import Record, encode
from contracts.events import Assignment, Decision, Event, Feedback, Message, Sampling, Timings
from contracts.heartbeat import Heartbeat, read_heartbeat
from contracts.ids import uuid7_ids
from contracts.settings import Kafka, Quarantine, Settings, Streams, to_environment
from contracts.topics import DECISIONS, FEEDBACK
from tests.messages import says
from tests.until import until

DEADLINE_SECONDS = 120.0
UNPROVEN = Quarantine(proof="optional")
"""Feedback made by hand has no token."""


class MakeDecision(Protocol):
    def __call__(self, question: str = ..., answer: str = ..., **fields: Any) -> Decision: ...


class MakeFeedback(Protocol):
    def __call__(self, decision: Decision, kind: str = ..., **fields: Any) -> Feedback: ...


@pytest.fixture(scope="session")
def decision() -> MakeDecision:
    """Make a decision; keywords replace fields."""
    new_id = uuid7_ids(SystemClock())

    def make(
        question: str = "How do I reset it?", answer: str = "Hold the button.", **fields: Any
    ) -> Decision:
        made = Decision(
            id=new_id(),
            time=datetime.now(UTC),
            session_id="session-1",
            user_id="user-1",
            assignment=Assignment(policy="assistant", policy_version="base"),
            messages=(Message(role="user", content=question),),
            answer=says(answer),
            action="answer",
            text=answer,
            prompt_token_ids=(1, 2),
            token_ids=(3, 4),
            logprobs=(-0.5, -0.25),
            sampling=Sampling(),
            finish_reason="stop",
            timings=Timings(),
            engine="test",
        )
        return msgspec.structs.replace(made, **fields)

    return make


@pytest.fixture(scope="session")
def feedback() -> MakeFeedback:
    """Make feedback on a decision; keywords replace fields."""
    new_id = uuid7_ids(SystemClock())

    def make(decision: Decision, kind: str = "rating", **fields: Any) -> Feedback:
        needed: dict[str, dict[str, Any]] = {
            "rating": {"score": 1.0},
            "outcome": {"score": 1.0, "name": "ticket"},
            "correction": {"correction": decision.answer},
            "report": {"reason": "rude"},
            "acceptance": {"score": 1.0},
            "dwell": {"seconds": 5.0},
            "retraction": {},
        }
        values = {
            "id": new_id(),
            "time": decision.time,
            "decision_id": decision.id,
            "session_id": decision.session_id,
            "user_id": decision.user_id,
            "kind": kind,
        }
        return Feedback(**{**values, **needed[kind], **fields})

    return make


class RunningStreams:
    """A worker process and what a test does to it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings, self._log = settings, log
        create_topics(settings.kafka)
        self._producer = make_producer(settings.kafka, "test")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.settings.state_dir / "run" / "streams-1.json").unlink(missing_ok=True)
        environment = {**os.environ, **to_environment(self.settings), "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streams"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until("ready", lambda: (found := self.heartbeat()) is not None and found.ready)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def heartbeat(self) -> Heartbeat | None:
        return read_heartbeat(self.settings.state_dir, "streams-1")

    def count(self, name: str) -> int:
        found = self.heartbeat()
        return found.counts[name] if found else 0

    def is_done(self, after: int) -> bool:
        """Say whether nothing is left to read or to close, with that many decisions read."""
        found = self.heartbeat()
        return (
            found is not None
            and found.counts["decisions"] >= after
            and (found.lag, found.counts["open"]) == (0, 0)
        )

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the worker lives."""

        def reached() -> bool:
            assert self.process.poll() is None, f"worker ended: {self._tail()}"
            return condition()

        until(what, reached, DEADLINE_SECONDS, state=lambda: f"{self.heartbeat()} {self._tail()}")

    def kill(self) -> None:
        """End it as a crash does, then let the group go on without it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        remove_dead_members(
            self.settings.kafka.bootstrap,
            f"{self.settings.kafka.prefix}streams",
            lambda client_id: client_id == "headrace-streams-1",
        )

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def send(self, *events: Event, trace: dict[str, str] | None = None) -> None:
        for event in events:
            topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
            send(
                self._producer,
                self.settings.kafka,
                encode(topic, event, source="test", trace=trace),
            )
        self._producer.flush(30)

    def send_record(self, record: Record) -> tuple[int, int]:
        """Send and return (partition, offset)."""
        sent = send(self._producer, self.settings.kafka, record).get(30)
        return sent.partition, sent.offset

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self._producer.close()

    def _tail(self) -> str:
        return self._log.read_text()[-3000:]


@pytest.fixture(scope="module")
def streams(
    broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningStreams]]:
    """Make workers with topics of their own; keywords are settings of the section ``streams``."""
    new_id = uuid7_ids(SystemClock())
    made: list[RunningStreams] = []

    def make(kafka: Kafka | None = None, **section: Any) -> RunningStreams:
        folder = tmp_path_factory.mktemp("streams")
        kafka = msgspec.structs.replace(kafka or broker.kafka, prefix=f"t-{new_id()}-")
        section = {"quarantine": UNPROVEN, **section}
        settings = Settings(state_dir=folder / "state", kafka=kafka, streams=Streams(**section))
        made.append(RunningStreams(settings, folder / "log"))
        return made[-1]

    yield make
    for running in made:
        running.close()
