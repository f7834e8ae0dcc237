"""Each part of a running stack dead in turn, then all of them: the gateway keeps answering.

The stack is started by its supervisor, which here restarts nothing until it is told to.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from console.stack import open_stack
from console.stack_file import is_same_process, read_stack
from console.supervisor import Supervisor
from console.waiting import Shown
from contracts.broker import events_to_end
from contracts.settings import Engine, Gateway, Policy, Settings, Tracing
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.store import repository
from tests.serving.collector import Collector
from tests.serving.http_server import Server
from tests.until import until

pytestmark = pytest.mark.loop

SECONDS = 240.0


class Stack:
    """The stack, its parts to be killed, and all that its gateway acknowledged."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings = settings
        self.decisions: list[str] = []
        self.feedback: list[str] = []
        self._supervisor = supervisor
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{settings.gateway.port}", timeout=60.0
        )

    def kill(self, *names: str) -> None:
        """End processes and see that they are gone; the broker saves what it has, as when its
        machine is shut down."""
        found = read_stack(self.settings.state_dir)
        assert found is not None
        for entry in (entry for entry in found.processes if entry.name in names):
            number = signal.SIGTERM if entry.name == "broker" else signal.SIGKILL
            os.kill(entry.pid, number)

            def gone(pid: int = entry.pid, started: float = entry.started) -> bool:
                return not is_same_process(pid, started)

            until(f"the end of {entry.name}", gone)

    def revive(self) -> None:
        """Start again what is dead, as the supervisor does, until all is ready."""

        def ready() -> bool:
            self._supervisor.check()
            found = read_stack(self.settings.state_dir)
            return found is not None and all(e.state == "running" for e in found.processes[1:])

        until("the dead to return", ready, SECONDS)

    def answers(self, count: int = 4) -> None:
        """Ask plain and streamed questions and rate the answers: each is a model's own."""
        for number in range(count):
            message = {"role": "user", "content": "hello"}
            body: dict[str, Any] = {"model": "assistant", "messages": [message], "user": "u1"}
            body |= {"metadata": {"session_id": "s1"}, "stream": number % 2 == 1}
            answer = self._client.post("/v1/chat/completions", json=body)
            assert (answer.status_code, answer.headers["x-headrace-rung"]) == (200, "stable")
            self.decisions.append(answer.headers["x-headrace-decision-id"])
            if number % 2 == 0:
                self._rate(answer.json()["headrace"])
            else:
                assert answer.text.endswith("data: [DONE]\n\n")

    def _rate(self, ours: dict[str, str]) -> None:
        names = ("decision_id", "session_id", "user_id")
        body: dict[str, Any] = {name: ours[name] for name in names}
        body |= {"token": ours["feedback_token"], "kind": "rating", "score": 1.0}
        accepted = self._client.post("/v1/feedback", json=body)
        assert accepted.status_code == 202
        self.feedback.append(accepted.json()["event_id"])

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get("/healthz").json()
        return found

    def delivered(self) -> None:
        """Wait until nothing is left, and find all that was acknowledged on the topics, once."""
        until("delivery", lambda: self.health()["undelivered"] == 0, SECONDS, state=self.health)
        for topic, acknowledged in ((DECISIONS, self.decisions), (FEEDBACK, self.feedback)):
            events = events_to_end(self.settings.kafka, (topic,), "test")
            assert Counter(event.id for _, event in events) == Counter(acknowledged)


@pytest.fixture
def stack(
    tmp_path: Path, tiny_model: Path, tiny_engine: Server, collector: Collector
) -> Iterator[Stack]:
    given = Settings(
        state_dir=tmp_path / "state",
        policy=Policy(model=str(tiny_model)),
        engine=Engine(kind="transformers", url=tiny_engine.url),
        gateway=Gateway(port=0, max_tokens=40),
        tracing=Tracing(otlp_endpoint=collector.url),
    )
    with (tmp_path / "shown.txt").open("w") as shown:
        settings, supervisor = open_stack(given, 1, Shown(shown))
        supervisor.start()
        try:
            yield Stack(settings, supervisor)
        finally:
            supervisor.stop()


def test_whatever_else_is_dead_requests_succeed_and_nothing_acknowledged_is_lost(
    stack: Stack, collector: Collector
) -> None:
    until("the feature store", lambda: stack.health()["status"] == "ok", state=stack.health)
    stack.answers()
    for name in ("learner", "rollout", "streams-1"):
        stack.kill(name)
        stack.answers()
    stack.delivered()
    stack.revive()

    store = repository(stack.settings) / "online.db"
    kept = store.read_bytes()
    store.write_bytes(b"no database at all" * 500)
    stack.answers()
    store.write_bytes(kept)

    stack.kill("broker")
    stack.answers()
    assert stack.health()["status"] == "degraded"
    stack.revive()
    stack.delivered()

    collector.die()
    stack.answers()
    stack.kill("learner", "rollout", "streams-1", "broker")
    store.write_bytes(b"no database at all" * 500)
    stack.answers(6)
    store.write_bytes(kept)
    stack.revive()
    stack.delivered()
